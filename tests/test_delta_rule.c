/* Properties of the delta rule engine: both forms equal the recurrence, and hold what the recurrence implies. */
#include "core/backend.h"
#include "op_case.h"
#include "ops/ops.h"
#include "oracle/recurrence.h"
#include "testing.h"

enum { Q, KEY, P, VALUE, BETA, GATE, STATE, CU_SEQLENS, INPUTS };

static const comba_mode modes[] = {COMBA_MODE_CHUNK, COMBA_MODE_RECURRENT};
enum { MODES = 2 };

/* ---- A problem and its results ------------------------------------------------------------------------------------- */

typedef struct problem {
  int64_t B, T, H, HV, K, V;
  int64_t sequences; /* N; B without cu_seqlens */
  bool has_p, has_state, has_cu_seqlens;
  bool feedback_after_decay;
  double *input[INPUTS];
} problem;

typedef struct result {
  double *o, *final_state;
  double *gradient[INPUTS];
} result;

static comba_shape shape_of(const problem *x, int input) {
  switch (input) {
  case P:
    if (!x->has_p) return (comba_shape){0};
    return COMBA_SHAPE(x->B, x->T, x->H, x->K);
  case Q:
  case KEY: return COMBA_SHAPE(x->B, x->T, x->H, x->K);
  case VALUE: return COMBA_SHAPE(x->B, x->T, x->HV, x->V);
  case BETA:
  case GATE: return COMBA_SHAPE(x->B, x->T, x->HV);
  case STATE:
    if (!x->has_state) return (comba_shape){0};
    return COMBA_SHAPE(x->sequences, x->HV, x->K, x->V);
  default:
    if (!x->has_cu_seqlens) return (comba_shape){0};
    return COMBA_SHAPE(x->sequences + 1);
  }
}

static int64_t count_of(const problem *x, int input) {
  const comba_shape shape = shape_of(x, input);
  return comba_shape_elements(&shape);
}

static int64_t output_count(const problem *x) {
  return x->B * x->T * x->HV * x->V;
}

static int64_t state_count(const problem *x) {
  return x->sequences * x->HV * x->K * x->V;
}

/* Unit keys, beta in (0, 1), decay between e^-1 and 1. */
static problem problem_create(int64_t B, int64_t T, int64_t H, int64_t HV, int64_t K, int64_t V) {
  problem x = {.B = B, .T = T, .H = H, .HV = HV, .K = K, .V = V, .sequences = B, .has_p = true, .has_state = true};
  for (int i = 0; i < CU_SEQLENS; i++) x.input[i] = op_memory((size_t)count_of(&x, i) * sizeof(double));
  for (int i = Q; i <= P; i++) fill_unit(x.input[i], B * T * H, K, (uint64_t)i);
  fill_normal(x.input[VALUE], count_of(&x, VALUE), 1, VALUE);
  fill_uniform(x.input[BETA], count_of(&x, BETA), 0, 1, BETA);
  fill_uniform(x.input[GATE], count_of(&x, GATE), -1, 0, GATE);
  fill_normal(x.input[STATE], count_of(&x, STATE), 1, STATE);
  return x;
}

static void problem_free(problem *x) {
  for (int i = 0; i < INPUTS; i++) free(x->input[i]);
}

static void result_free(result *y) {
  free(y->o);
  free(y->final_state);
  for (int i = 0; i < INPUTS; i++) free(y->gradient[i]);
}

/* What the row computes; `backward` adds the gradients under random output gradients. */
static result run(const problem *x, const op_variant *variant, comba_mode mode, bool backward) {
  const comba_delta_rule_attributes attributes = {.feedback_after_decay = x->feedback_after_decay, .mode = mode};
  comba_shape shape[INPUTS];
  for (int i = 0; i < INPUTS; i++) shape[i] = shape_of(x, i);
  op_instance instance;
  ck_assert_msg(op_instance_create(&instance, variant->op[COMBA_OP_delta_rule], variant->real_size, &attributes,
                                   shape) == COMBA_OK,
                "%s", comba_last_error());
  for (int i = 0; i < INPUTS; i++)
    if (shape[i].rank) op_write(&instance.input[i], x->input[i]);
  op_instance_forward(&instance, backward);
  result y = {
      op_memory((size_t)output_count(x) * sizeof(double)), op_memory((size_t)state_count(x) * sizeof(double)), {NULL}};
  op_read(&instance.output[0], y.o);
  op_read(&instance.output[1], y.final_state);
  if (backward) {
    double *gradient[2] = {op_memory((size_t)output_count(x) * sizeof(double)),
                           op_memory((size_t)state_count(x) * sizeof(double))};
    fill_normal(gradient[0], output_count(x), 1, 20);
    fill_normal(gradient[1], state_count(x), 1, 21);
    for (int i = 0; i < 2; i++) {
      op_write(&instance.output_gradient[i], gradient[i]);
      free(gradient[i]);
    }
    op_instance_backward(&instance, op_instance_differentiable_inputs(&instance), 0, 3);
    for (int i = 0; i < CU_SEQLENS; i++) {
      if (!shape[i].rank) continue;
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
  result y = {
      op_memory((size_t)output_count(x) * sizeof(double)), op_memory((size_t)state_count(x) * sizeof(double)), {NULL}};
  const int64_t group = x->HV / x->H;
  if (x->has_state) memcpy(y.final_state, x->input[STATE], (size_t)state_count(x) * sizeof(double));
  for (int64_t n = 0; n < x->sequences; n++)
    for (int64_t h = 0; h < x->HV; h++) {
      const int64_t first = x->has_cu_seqlens ? (int64_t)x->input[CU_SEQLENS][n] : n * x->T;
      const int64_t end = x->has_cu_seqlens ? (int64_t)x->input[CU_SEQLENS][n + 1] : first + x->T;
      const int64_t key = (first * x->H + h / group) * x->K, value = (first * x->HV + h) * x->V,
                    gate = first * x->HV + h;
      const recurrence r = {.T = end - first,
                            .K = x->K,
                            .V = x->V,
                            .scale = 1 / sqrt((double)x->K),
                            .feedback_after_decay = x->feedback_after_decay,
                            .q = x->input[Q] + key,
                            .k = x->input[KEY] + key,
                            .p = x->input[x->has_p ? P : KEY] + key,
                            .v = x->input[VALUE] + value,
                            .beta = x->input[BETA] + gate,
                            .g = x->input[GATE] + gate,
                            .key_stride = x->H * x->K,
                            .value_stride = x->HV * x->V,
                            .gate_stride = x->HV,
                            .o = y.o + value};
      recurrence_run(&r, y.final_state + (n * x->HV + h) * x->K * x->V);
    }
  return y;
}

/* The variant that this processor runs, and the double-precision one; properties hold in both. */
static op_variant fastest(void) {
  op_variant variant[OP_VARIANTS];
  const int count = op_variants(variant);
  return variant[count - 1];
}

static const char *const names[] = {"q", "k", "p", "v", "beta", "g", "initial state"};

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

static const int64_t lengths[] = {1, 2, 63, 64, 65, 150}, key_sizes[] = {16, 24, 64, 100, 128, 256};
enum { SIZES = 6 };

START_TEST(both_forms_equal_the_recurrence) {
  const int64_t T = lengths[_i / SIZES], K = key_sizes[_i % SIZES];
  problem x = problem_create(1, T, 1, 2, K, K == 24 ? 50 : 24);
  for (int after = 0; after < 2; after++) {
    x.feedback_after_decay = after;
    expect_right(&x, 2e-5);
  }
  problem_free(&x);
}
END_TEST

START_TEST(optional_inputs_may_be_absent) {
  problem x = problem_create(2, 70, 2, 2, 16, 24);
  x.has_p = _i & 1;
  x.has_state = _i & 2;
  expect_right(&x, 2e-5);
  problem_free(&x);
}
END_TEST

/* ---- Properties ---------------------------------------------------------------------------------------------------- */

/* Tokens [first, end) of a problem with one sequence a batch entry. */
static problem part_of(const problem *x, int64_t first, int64_t end, const double *state) {
  problem part = *x;
  part.T = end - first;
  for (int i = 0; i < CU_SEQLENS; i++) part.input[i] = op_memory((size_t)count_of(&part, i) * sizeof(double));
  for (int i = 0; i < STATE; i++) {
    const int64_t row = count_of(x, i) / (x->B * x->T);
    for (int64_t b = 0; b < x->B; b++)
      memcpy(part.input[i] + b * part.T * row, x->input[i] + (b * x->T + first) * row,
             (size_t)(part.T * row) * sizeof(double));
  }
  memcpy(part.input[STATE], state, (size_t)state_count(x) * sizeof(double));
  return part;
}

/* Puts the outputs of tokens [first, end) in their place. */
static void place(const problem *x, const problem *part, int64_t first, const double *from, double *to) {
  const int64_t row = x->HV * x->V;
  for (int64_t b = 0; b < x->B; b++)
    memcpy(to + (b * x->T + first) * row, from + b * part->T * row, (size_t)(part->T * row) * sizeof(double));
}

/* Runs pieces that end at `end`, each from the state that the one before left. */
static result run_in_pieces(const problem *x, const int64_t *end, int pieces, comba_mode mode) {
  const op_variant variant = fastest();
  result whole = {
      op_memory((size_t)output_count(x) * sizeof(double)), op_memory((size_t)state_count(x) * sizeof(double)), {NULL}};
  memcpy(whole.final_state, x->input[STATE], (size_t)state_count(x) * sizeof(double));
  for (int i = 0; i < pieces; i++) {
    const int64_t first = i ? end[i - 1] : 0;
    problem part = part_of(x, first, end[i], whole.final_state);
    result y = run(&part, &variant, mode, false);
    place(x, &part, first, y.o, whole.o);
    memcpy(whole.final_state, y.final_state, (size_t)state_count(x) * sizeof(double));
    result_free(&y);
    problem_free(&part);
  }
  return whole;
}

START_TEST(split_anywhere_equals_whole) {
  static const int64_t cuts[] = {1, 2, 31, 63, 64, 65, 100, 127, 128, 149};
  const int64_t end[] = {cuts[_i], 150};
  problem x = problem_create(2, 150, 1, 2, 24, 40);
  result expected = run_recurrence(&x);
  for (int m = 0; m < MODES; m++) {
    result found = run_in_pieces(&x, end, 2, modes[m]);
    expect_close(&x, &found, &expected, 1e-5);
    result_free(&found);
  }
  result_free(&expected);
  problem_free(&x);
}
END_TEST

START_TEST(token_by_token_equals_whole) {
  int64_t end[150];
  for (int i = 0; i < 150; i++) end[i] = i + 1;
  problem x = problem_create(1, 150, 2, 2, 16, 24);
  result expected = run_recurrence(&x);
  for (int m = 0; m < MODES; m++) {
    result found = run_in_pieces(&x, end, 150, modes[m]);
    expect_close(&x, &found, &expected, 1e-5);
    result_free(&found);
  }
  result_free(&expected);
  problem_free(&x);
}
END_TEST

/* Short, empty and long sequences side by side, among them some that end on a chunk's edge. */
START_TEST(packed_sequences_are_separate) {
  static const double cu_seqlens[] = {0, 1, 1, 64, 128, 193, 200};
  problem x = problem_create(1, 200, 2, 4, 24, 16);
  free(x.input[STATE]);
  x.sequences = 6;
  x.has_cu_seqlens = true;
  x.input[STATE] = op_memory((size_t)state_count(&x) * sizeof(double));
  fill_normal(x.input[STATE], state_count(&x), 1, STATE);
  x.input[CU_SEQLENS] = op_memory(sizeof cu_seqlens);
  memcpy(x.input[CU_SEQLENS], cu_seqlens, sizeof cu_seqlens);
  expect_right(&x, 2e-5);
  problem_free(&x);
}
END_TEST

START_TEST(future_leaves_the_past_as_it_is) {
  static const int64_t changes[] = {1, 17, 63, 64, 65, 100, 149};
  const int64_t t = changes[_i];
  const op_variant variant = fastest();
  for (int m = 0; m < MODES; m++) {
    problem x = problem_create(1, 150, 1, 2, 24, 40);
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

/* values (rows, heads, size): head h of `to` is head order[h] of `from`. */
static void permute(const double *from, double *to, int64_t rows, int64_t heads, int64_t size, const int *order) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t h = 0; h < heads; h++)
      memcpy(to + (row * heads + h) * size, from + (row * heads + order[h]) * size, (size_t)size * sizeof(double));
}

START_TEST(heads_are_separate) {
  static const int order[] = {2, 0, 3, 1};
  const op_variant variant = fastest();
  for (int m = 0; m < MODES; m++) {
    problem x = problem_create(2, 100, 4, 4, 24, 40), permuted = problem_create(2, 100, 4, 4, 24, 40);
    for (int i = 0; i < CU_SEQLENS; i++) {
      const int64_t rows = i == STATE ? x.B : x.B * x.T;
      permute(x.input[i], permuted.input[i], rows, x.HV, count_of(&x, i) / (rows * x.HV), order);
    }
    result y = run(&x, &variant, modes[m], false), found = run(&permuted, &variant, modes[m], false);
    result expected = {op_memory((size_t)output_count(&x) * sizeof(double)),
                       op_memory((size_t)state_count(&x) * sizeof(double)),
                       {NULL}};
    permute(y.o, expected.o, x.B * x.T, x.HV, x.V, order);
    permute(y.final_state, expected.final_state, x.B, x.HV, x.K * x.V, order);
    expect_close(&x, &found, &expected, 1e-6);
    result_free(&y);
    result_free(&found);
    result_free(&expected);
    problem_free(&x);
    problem_free(&permuted);
  }
}
END_TEST

/* Without writes the state decays and nothing else: o_t = scale e^{g_1 + ... + g_t} S_0^T q_t. */
START_TEST(beta_zero_is_pure_decay) {
  const op_variant variant = fastest();
  problem x = problem_create(1, 100, 1, 1, 24, 40);
  fill_constant(x.input[BETA], count_of(&x, BETA), 0);
  fill_uniform(x.input[GATE], count_of(&x, GATE), -0.05, 0, GATE);
  double *o = op_memory((size_t)output_count(&x) * sizeof(double)), decay = 0;
  for (int64_t t = 0; t < x.T; t++) {
    decay += x.input[GATE][t];
    for (int64_t j = 0; j < x.V; j++) {
      double sum = 0;
      for (int64_t i = 0; i < x.K; i++) sum += x.input[STATE][i * x.V + j] * x.input[Q][t * x.K + i];
      o[t * x.V + j] = exp(decay) / sqrt((double)x.K) * sum;
    }
  }
  for (int m = 0; m < MODES; m++) {
    result y = run(&x, &variant, modes[m], false);
    ck_assert_close(y.o, o, output_count(&x), 1e-5);
    result_free(&y);
  }
  free(o);
  problem_free(&x);
}
END_TEST

START_TEST(output_is_linear_in_v) {
  const op_variant variant = fastest();
  problem x = problem_create(1, 130, 1, 2, 24, 40);
  x.has_state = false;
  const int64_t count = count_of(&x, VALUE);
  double *first = op_memory((size_t)count * sizeof(double)), *second = op_memory((size_t)count * sizeof(double));
  double *expected = op_memory((size_t)count * sizeof(double));
  fill_normal(first, count, 1, 31);
  fill_normal(second, count, 1, 32);
  for (int m = 0; m < MODES; m++) {
    memcpy(x.input[VALUE], first, (size_t)count * sizeof(double));
    result y1 = run(&x, &variant, modes[m], false);
    memcpy(x.input[VALUE], second, (size_t)count * sizeof(double));
    result y2 = run(&x, &variant, modes[m], false);
    for (int64_t i = 0; i < count; i++) {
      x.input[VALUE][i] = first[i] - 2 * second[i];
      expected[i] = y1.o[i] - 2 * y2.o[i];
    }
    result y = run(&x, &variant, modes[m], false);
    ck_assert_close(y.o, expected, count, 1e-5);
    result_free(&y1);
    result_free(&y2);
    result_free(&y);
  }
  free(first);
  free(second);
  free(expected);
  problem_free(&x);
}
END_TEST

/* A decoder updates its state where it lies. */
START_TEST(final_state_may_lie_on_the_initial_one) {
  static const int64_t cases[] = {1, 3, 65};
  const op_variant variant = fastest();
  const comba_delta_rule_attributes attributes = {.mode = modes[_i % MODES]};
  problem x = problem_create(2, cases[_i / MODES], 1, 2, 24, 40);
  result expected = run(&x, &variant, modes[_i % MODES], false);
  comba_shape shape[INPUTS];
  for (int i = 0; i < INPUTS; i++) shape[i] = shape_of(&x, i);
  op_instance instance;
  ck_assert_int_eq(
      op_instance_create(&instance, variant.op[COMBA_OP_delta_rule], variant.real_size, &attributes, shape), COMBA_OK);
  for (int i = 0; i < CU_SEQLENS; i++) op_write(&instance.input[i], x.input[i]);
  instance.call.output[1].data = instance.input[STATE].data;
  op_instance_forward(&instance, false);
  result found = {op_memory((size_t)output_count(&x) * sizeof(double)),
                  op_memory((size_t)state_count(&x) * sizeof(double)),
                  {NULL}};
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

static void forget_everything(problem *x) { /* alpha = 0 */
  fill_constant(x->input[GATE], count_of(x, GATE), -100);
}

static void forget_nothing(problem *x) { /* alpha = 1 */
  fill_constant(x->input[GATE], count_of(x, GATE), 0);
}

/* The worst case of the triangular inverse: every key, feedback and query the same, full writes, no decay. */
static void repeat_one_key(problem *x) {
  for (int i = Q; i <= P; i++)
    for (int64_t row = 1; row < x->B * x->T * x->H; row++)
      memcpy(x->input[i] + row * x->K, x->input[KEY], (size_t)x->K * sizeof(double));
  for (int i = Q; i <= P; i++) memcpy(x->input[i], x->input[KEY], (size_t)x->K * sizeof(double));
  fill_constant(x->input[BETA], count_of(x, BETA), 1);
  forget_nothing(x);
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

static void saturate_beta(problem *x) {
  for (int64_t i = 0; i < count_of(x, BETA); i++) x->input[BETA][i] = (double)(i / 3 % 2);
  forget_nothing(x);
}

static void overwrite_twice(problem *x) { /* beta = 2 reflects the state at each key */
  fill_constant(x->input[BETA], count_of(x, BETA), 2);
  memcpy(x->input[P], x->input[KEY], (size_t)count_of(x, P) * sizeof(double));
  fill_constant(x->input[GATE], count_of(x, GATE), -0.001);
}

static void zero_keys(problem *x) {
  fill_constant(x->input[KEY], count_of(x, KEY) / 2, 0);
}

static void (*const hard[])(problem *x) = {forget_everything,         forget_nothing, repeat_one_key,
                                           mix_strong_and_weak_gates, forget_once,    saturate_beta,
                                           overwrite_twice,           zero_keys};
enum { HARD = sizeof hard / sizeof *hard };

START_TEST(hard_values_are_right) {
  problem x = problem_create(1, 150, 1, 2, 64, 24);
  hard[_i / 2](&x);
  x.feedback_after_decay = _i % 2;
  expect_right(&x, 1e-4);
  problem_free(&x);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("delta rule");
  TCase *equality = tcase_create("equality"), *properties = tcase_create("properties"),
        *values = tcase_create("values");
  tcase_add_loop_test(equality, both_forms_equal_the_recurrence, 0, SIZES * SIZES);
  tcase_add_loop_test(equality, optional_inputs_may_be_absent, 0, 4);
  tcase_add_loop_test(properties, split_anywhere_equals_whole, 0, 10);
  tcase_add_test(properties, token_by_token_equals_whole);
  tcase_add_test(properties, packed_sequences_are_separate);
  tcase_add_loop_test(properties, future_leaves_the_past_as_it_is, 0, 7);
  tcase_add_test(properties, heads_are_separate);
  tcase_add_test(properties, beta_zero_is_pure_decay);
  tcase_add_test(properties, output_is_linear_in_v);
  tcase_add_loop_test(properties, final_state_may_lie_on_the_initial_one, 0, 3 * MODES);
  tcase_add_loop_test(values, hard_values_are_right, 0, 2 * HARD);
  suite_add_tcase(suite, equality);
  suite_add_tcase(suite, properties);
  suite_add_tcase(suite, values);
  return run_suite(suite);
}
