/* Properties of the engine with scalar decay: both forms equal the recurrence, and hold what the recurrence implies. */
#include "op_case.h"
#include "ops/ops.h"
#include "oracle/scalar_recurrence.h"
#include "testing.h"

enum { Q, KEY, VALUE, GATE, STATE, CU_SEQLENS, INPUTS };

static const comba_mode modes[] = {COMBA_MODE_CHUNK, COMBA_MODE_RECURRENT};
enum { MODES = 2 };

/* ---- A problem and its results ------------------------------------------------------------------------------------- */

typedef struct problem {
  int64_t B, T, H, HV, K, V;
  int64_t sequences; /* N; B without cu_seqlens */
  int64_t retention; /* without g */
  bool has_g, has_state, has_cu_seqlens;
  double *input[INPUTS];
} problem;

typedef struct result {
  double *o, *final_state;
  double *gradient[INPUTS];
} result;

static comba_shape shape_of(const problem *x, int input) {
  const comba_shape absent = {0};
  switch (input) {
  case Q:
  case KEY: return COMBA_SHAPE(x->B, x->T, x->H, x->K);
  case VALUE: return COMBA_SHAPE(x->B, x->T, x->HV, x->V);
  case GATE: return x->has_g ? COMBA_SHAPE(x->B, x->T, x->HV) : absent;
  case STATE: return x->has_state ? COMBA_SHAPE(x->sequences, x->HV, x->K, x->V) : absent;
  default: return x->has_cu_seqlens ? COMBA_SHAPE(x->sequences + 1) : absent;
  }
}

static int64_t count_of(const problem *x, int input) {
  const comba_shape shape = shape_of(x, input);
  return shape.rank ? comba_shape_elements(&shape) : 0;
}

static int64_t output_count(const problem *x) {
  return x->B * x->T * x->HV * x->V;
}

static int64_t state_count(const problem *x) {
  return x->sequences * x->HV * x->K * x->V;
}

/* Unit keys, decay between e^-1 and 1. */
static problem problem_create(int64_t B, int64_t T, int64_t H, int64_t HV, int64_t K, int64_t V, int64_t sequences) {
  problem x = {.B = B, .T = T, .H = H, .HV = HV, .K = K, .V = V, .sequences = sequences, .has_g = true};
  x.has_state = true;
  for (int i = 0; i < CU_SEQLENS; i++) x.input[i] = op_memory((size_t)count_of(&x, i) * sizeof(double));
  for (int i = Q; i <= KEY; i++) fill_unit(x.input[i], B * T * H, K, (uint64_t)i);
  fill_normal(x.input[VALUE], count_of(&x, VALUE), 1, VALUE);
  fill_uniform(x.input[GATE], count_of(&x, GATE), -1, 0, GATE);
  fill_normal(x.input[STATE], count_of(&x, STATE), 1, STATE);
  return x;
}

static void problem_free(problem *x) {
  for (int i = 0; i < INPUTS; i++) free(x->input[i]);
}

static result result_create(const problem *x) {
  return (result){.o = op_memory((size_t)output_count(x) * sizeof(double)),
                  .final_state = op_memory((size_t)state_count(x) * sizeof(double))};
}

static void result_free(result *y) {
  free(y->o);
  free(y->final_state);
  for (int i = 0; i < INPUTS; i++) free(y->gradient[i]);
}

static void instance_create(op_instance *instance, const problem *x, const op_variant *variant, comba_mode mode) {
  const comba_scalar_decay_attributes attributes = {.retention = x->retention, .mode = mode};
  comba_shape shape[INPUTS];
  for (int i = 0; i < INPUTS; i++) shape[i] = shape_of(x, i);
  ck_assert_msg(op_instance_create(instance, variant->op[COMBA_OP_scalar_decay], variant->real_size, &attributes,
                                   shape) == COMBA_OK,
                "%s", comba_last_error());
  for (int i = 0; i < INPUTS; i++)
    if (shape[i].rank) op_write(&instance->input[i], x->input[i]);
}

/* What the row computes; `backward` adds the gradients under random output gradients. */
static result run(const problem *x, const op_variant *variant, comba_mode mode, bool backward) {
  op_instance instance;
  instance_create(&instance, x, variant, mode);
  op_instance_forward(&instance, backward);
  result y = result_create(x);
  op_read(&instance.output[0], y.o);
  op_read(&instance.output[1], y.final_state);
  if (backward) {
    const int64_t count[2] = {output_count(x), state_count(x)};
    for (int i = 0; i < 2; i++) {
      double *gradient = op_memory((size_t)count[i] * sizeof(double));
      fill_normal(gradient, count[i], 1, (uint64_t)(20 + i));
      op_write(&instance.output_gradient[i], gradient);
      free(gradient);
    }
    op_instance_backward(&instance, op_instance_differentiable_inputs(&instance), 0, 3);
    for (int i = 0; i < CU_SEQLENS; i++) {
      if (!count_of(x, i)) continue;
      y.gradient[i] = op_memory((size_t)count_of(x, i) * sizeof(double));
      op_read(&instance.input_gradient[i], y.gradient[i]);
    }
  }
  const char *damage = op_instance_damage(&instance);
  ck_assert_msg(!damage, "something was written outside %s", damage);
  op_instance_free(&instance);
  return y;
}

static result run_recurrence(const problem *x) {
  result y = result_create(x);
  if (x->has_state) memcpy(y.final_state, x->input[STATE], (size_t)state_count(x) * sizeof(double));
  for (int64_t n = 0; n < x->sequences; n++)
    for (int64_t h = 0; h < x->HV; h++) {
      const int64_t first = x->has_cu_seqlens ? (int64_t)x->input[CU_SEQLENS][n] : n * x->T;
      const int64_t end = x->has_cu_seqlens ? (int64_t)x->input[CU_SEQLENS][n + 1] : first + x->T;
      const int64_t key = (first * x->H + h / (x->HV / x->H)) * x->K, value = (first * x->HV + h) * x->V;
      const scalar_recurrence r = {.T = end - first,
                                   .K = x->K,
                                   .V = x->V,
                                   .scale = 1 / sqrt((double)x->K),
                                   .decay = x->retention ? 1 - exp2(-(double)(x->retention + h)) : 1,
                                   .q = x->input[Q] + key,
                                   .k = x->input[KEY] + key,
                                   .v = x->input[VALUE] + value,
                                   .g = x->has_g ? x->input[GATE] + first * x->HV + h : NULL,
                                   .key_stride = x->H * x->K,
                                   .value_stride = x->HV * x->V,
                                   .gate_stride = x->HV,
                                   .o = y.o + value};
      scalar_recurrence_run(&r, y.final_state + (n * x->HV + h) * x->K * x->V);
    }
  return y;
}

/* The variant that this processor runs, and the double-precision one; properties hold in both. */
static op_variant fastest(void) {
  op_variant variant[OP_VARIANTS];
  const int count = op_variants(variant);
  return variant[count - 1];
}

static const char *const names[] = {"q", "k", "v", "g", "initial state"};

static void expect_close(const problem *x, const result *found, const result *expected, double tolerance) {
  ck_assert_close(found->o, expected->o, output_count(x), tolerance);
  ck_assert_close(found->final_state, expected->final_state, state_count(x), tolerance);
}

/* Both forms, forward against the recurrence and backward against the oracle's recurrent form, which the operator suite
 * holds against central differences. */
static void expect_right(const problem *x, double tolerance) {
  const op_variant variant[] = {fastest(), op_oracle};
  result expected = run_recurrence(x), gradients = run(x, &op_oracle, COMBA_MODE_RECURRENT, true);
  for (int i = 0; i < 2; i++)
    for (int m = 0; m < MODES; m++) {
      const double limit = variant[i].real_size == sizeof(double) ? 1e-10 : tolerance;
      result found = run(x, &variant[i], modes[m], true);
      expect_close(x, &found, &expected, limit);
      for (int k = 0; k < CU_SEQLENS; k++) {
        if (!found.gradient[k]) continue;
        const double error = relative_error(found.gradient[k], gradients.gradient[k], count_of(x, k));
        ck_assert_msg(error <= limit, "%s, %s form: gradient of %s: relative error %.3g, tolerance %.3g",
                      variant[i].name, m ? "recurrent" : "chunk", names[k], error, limit);
      }
      result_free(&found);
    }
  result_free(&expected);
  result_free(&gradients);
}

/* ---- Equality with the recurrence ---------------------------------------------------------------------------------- */

static const int64_t lengths[] = {1, 2, 63, 64, 65, 150}, key_sizes[] = {1, 16, 24, 64, 100, 256};
enum { SIZES = 6 };

START_TEST(both_forms_equal_the_recurrence) {
  const int64_t T = lengths[_i / SIZES], K = key_sizes[_i % SIZES];
  problem x = problem_create(1, T, 1, 2, K, K == 24 ? 50 : 24, 1);
  expect_right(&x, 1e-5);
  problem_free(&x);
}
END_TEST

START_TEST(optional_inputs_may_be_absent) {
  problem x = problem_create(2, 70, 2, 2, 16, 24, 2);
  x.has_g = _i & 1;
  x.has_state = _i & 2;
  x.retention = _i & 4;
  expect_right(&x, 1e-5);
  problem_free(&x);
}
END_TEST

START_TEST(keys_may_be_shared) {
  static const int64_t heads[][2] = {{1, 3}, {2, 4}, {4, 4}};
  problem x = problem_create(2, 70, heads[_i][0], heads[_i][1], 16, 24, 2);
  expect_right(&x, 1e-5);
  problem_free(&x);
}
END_TEST

/* ---- Properties ---------------------------------------------------------------------------------------------------- */

/* Runs pieces that end at `end`, each from the state that the one before left; one sequence. */
static result run_in_pieces(const problem *x, const int64_t *end, int pieces, comba_mode mode) {
  const op_variant variant = fastest();
  result whole = result_create(x);
  memcpy(whole.final_state, x->input[STATE], (size_t)state_count(x) * sizeof(double));
  for (int p = 0; p < pieces; p++) {
    const int64_t first = p ? end[p - 1] : 0;
    problem part = *x;
    part.T = end[p] - first;
    for (int i = 0; i < STATE; i++) part.input[i] = x->input[i] + first * count_of(x, i) / x->T;
    part.input[STATE] = whole.final_state;
    result y = run(&part, &variant, mode, false);
    memcpy(whole.o + first * output_count(x) / x->T, y.o, (size_t)output_count(&part) * sizeof(double));
    memcpy(whole.final_state, y.final_state, (size_t)state_count(x) * sizeof(double));
    result_free(&y);
  }
  return whole;
}

static void expect_pieces_right(const int64_t *end, int pieces) {
  problem x = problem_create(1, 150, 1, 2, 24, 40, 1);
  result expected = run_recurrence(&x);
  for (int m = 0; m < MODES; m++) {
    result found = run_in_pieces(&x, end, pieces, modes[m]);
    expect_close(&x, &found, &expected, 1e-5);
    result_free(&found);
  }
  result_free(&expected);
  problem_free(&x);
}

START_TEST(split_anywhere_equals_whole) {
  static const int64_t cuts[] = {1, 2, 31, 63, 64, 65, 100, 127, 128, 149};
  expect_pieces_right((const int64_t[]){cuts[_i], 150}, 2);
}
END_TEST

START_TEST(token_by_token_equals_whole) {
  int64_t end[150];
  for (int i = 0; i < 150; i++) end[i] = i + 1;
  expect_pieces_right(end, 150);
}
END_TEST

/* Short, empty and long sequences side by side, among them some that end on a chunk's edge. */
START_TEST(packed_sequences_are_separate) {
  static const double cu_seqlens[] = {0, 1, 1, 64, 128, 193, 200};
  problem x = problem_create(1, 200, 2, 4, 24, 16, 6);
  x.has_cu_seqlens = true;
  x.has_g = !_i;
  x.retention = 5;
  x.input[CU_SEQLENS] = op_memory(sizeof cu_seqlens);
  memcpy(x.input[CU_SEQLENS], cu_seqlens, sizeof cu_seqlens);
  expect_right(&x, 1e-5);
  problem_free(&x);
}
END_TEST

START_TEST(future_leaves_the_past_as_it_is) {
  static const int64_t changes[] = {1, 17, 63, 64, 65, 100, 149};
  const int64_t t = changes[_i];
  const op_variant variant = fastest();
  for (int m = 0; m < MODES; m++) {
    problem x = problem_create(1, 150, 1, 2, 24, 40, 1);
    result before = run(&x, &variant, modes[m], false);
    for (int i = 0; i < STATE; i++) {
      const int64_t row = count_of(&x, i) / x.T;
      for (int64_t k = t * row; k < x.T * row; k++) x.input[i][k] = i == GATE ? -0.5 : (float)(0.3 - x.input[i][k]);
    }
    result after = run(&x, &variant, modes[m], false);
    const size_t past = (size_t)(t * x.HV * x.V) * sizeof(double);
    ck_assert_msg(!memcmp(before.o, after.o, past), "a token before %lld changed", (long long)t);
    ck_assert(memcmp(before.o, after.o, (size_t)output_count(&x) * sizeof(double)));
    result_free(&before);
    result_free(&after);
    problem_free(&x);
  }
}
END_TEST

/* Without decay the order of the tokens does not matter to the state. */
START_TEST(final_state_forgets_the_order_without_decay) {
  const op_variant variant = fastest();
  problem x = problem_create(1, 130, 1, 2, 24, 40, 1);
  x.has_g = false;
  for (int m = 0; m < MODES; m++) {
    result forward = run(&x, &variant, modes[m], false);
    for (int i = KEY; i <= VALUE; i++) {
      const int64_t row = count_of(&x, i) / x.T;
      for (int64_t t = 0; t < x.T / 2; t++)
        for (int64_t c = 0; c < row; c++) {
          double *one = &x.input[i][t * row + c], *other = &x.input[i][(x.T - 1 - t) * row + c], kept = *one;
          *one = *other;
          *other = kept;
        }
    }
    result reversed = run(&x, &variant, modes[m], false);
    ck_assert_close(reversed.final_state, forward.final_state, state_count(&x), 1e-5);
    result_free(&forward);
    result_free(&reversed);
  }
  problem_free(&x);
}
END_TEST

START_TEST(output_is_linear_in_v_and_the_state) {
  const op_variant variant = fastest();
  problem x = problem_create(1, 130, 1, 2, 24, 40, 1);
  for (int m = 0; m < MODES; m++) {
    result once = run(&x, &variant, modes[m], false);
    for (int i = VALUE; i <= STATE; i++)
      for (int64_t k = 0; i != GATE && k < count_of(&x, i); k++) x.input[i][k] *= -2;
    result twice = run(&x, &variant, modes[m], false);
    for (int64_t k = 0; k < output_count(&x); k++) once.o[k] *= -2;
    ck_assert_close(twice.o, once.o, output_count(&x), 1e-6);
    result_free(&once);
    result_free(&twice);
  }
  problem_free(&x);
}
END_TEST

/* A decoder updates its state where it lies. */
START_TEST(final_state_may_lie_on_the_initial_one) {
  static const int64_t cases[] = {1, 3, 65};
  const op_variant variant = fastest();
  problem x = problem_create(2, cases[_i / MODES], 1, 2, 24, 40, 2);
  result expected = run(&x, &variant, modes[_i % MODES], false), found = result_create(&x);
  op_instance instance;
  instance_create(&instance, &x, &variant, modes[_i % MODES]);
  instance.call.output[1].data = instance.input[STATE].data;
  op_instance_forward(&instance, false);
  op_read(&instance.output[0], found.o);
  op_read(&instance.input[STATE], found.final_state);
  ck_assert(!memcmp(found.o, expected.o, (size_t)output_count(&x) * sizeof(double)));
  ck_assert(!memcmp(found.final_state, expected.final_state, (size_t)state_count(&x) * sizeof(double)));
  op_instance_free(&instance);
  result_free(&found);
  result_free(&expected);
  problem_free(&x);
}
END_TEST

/* ---- Hard values --------------------------------------------------------------------------------------------------- */

static void forget_everything(problem *x) {
  fill_constant(x->input[GATE], count_of(x, GATE), -100);
}

static void forget_nothing(problem *x) {
  fill_constant(x->input[GATE], count_of(x, GATE), 0);
}

static void mix_strong_and_weak_gates(problem *x) {
  static const double gates[] = {-0.01, -50, 0, -0.001, -100, -0.5, -1e-7};
  for (int64_t i = 0; i < count_of(x, GATE); i++) x->input[GATE][i] = (float)gates[i % 7];
}

/* One token in the middle of a chunk forgets; the tokens around it do not: sums of gates must not lose the weak ones. */
static void forget_once(problem *x) {
  fill_constant(x->input[GATE], count_of(x, GATE), -0.01);
  for (int64_t t = 30; t < x->T; t += 64)
    for (int64_t h = 0; h < x->HV; h++) x->input[GATE][t * x->HV + h] = -100;
}

static void zero_keys(problem *x) {
  fill_constant(x->input[KEY], count_of(x, KEY) / 2, 0);
}

static void (*const hard[])(problem *x) = {forget_everything, forget_nothing, mix_strong_and_weak_gates, forget_once,
                                           zero_keys};
enum { HARD = sizeof hard / sizeof *hard };

START_TEST(hard_values_are_right) {
  problem x = problem_create(1, 150, 1, 2, 64, 24, 1);
  hard[_i](&x);
  expect_right(&x, 1e-4);
  problem_free(&x);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("scalar decay");
  TCase *equality = tcase_create("equality"), *properties = tcase_create("properties"),
        *values = tcase_create("values");
  tcase_add_loop_test(equality, both_forms_equal_the_recurrence, 0, SIZES * SIZES);
  tcase_add_loop_test(equality, optional_inputs_may_be_absent, 0, 8);
  tcase_add_loop_test(equality, keys_may_be_shared, 0, 3);
  tcase_add_loop_test(properties, split_anywhere_equals_whole, 0, 10);
  tcase_add_test(properties, token_by_token_equals_whole);
  tcase_add_loop_test(properties, packed_sequences_are_separate, 0, 2);
  tcase_add_loop_test(properties, future_leaves_the_past_as_it_is, 0, 7);
  tcase_add_test(properties, final_state_forgets_the_order_without_decay);
  tcase_add_test(properties, output_is_linear_in_v_and_the_state);
  tcase_add_loop_test(properties, final_state_may_lie_on_the_initial_one, 0, 3 * MODES);
  tcase_add_loop_test(values, hard_values_are_right, 0, HARD);
  suite_add_tcase(suite, equality);
  suite_add_tcase(suite, properties);
  suite_add_tcase(suite, values);
  return run_suite(suite);
}
