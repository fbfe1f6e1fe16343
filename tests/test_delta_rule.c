/* Properties of the delta rule engine: both forms equal the recurrence, and hold what the recurrence implies. */
#include "oracle/recurrence.h"
#include "scan_case.h"

#include <string.h>

enum { Q, KEY, P, VALUE, BETA, GATE, STATE, CU_SEQLENS, INPUTS };
static const char *const names[] = {"q", "k", "p", "v", "beta", "g", "initial state"};

/* The option: feedback_after_decay. */
static const void *attributes(int64_t option, comba_mode mode) {
  static comba_delta_rule_attributes attributes;
  attributes = (comba_delta_rule_attributes){.feedback_after_decay = option, .mode = mode};
  return &attributes;
}

static void run_recurrence(const scan_problem *x, int64_t first, int64_t T, int64_t head, double *o, double *state) {
  const int64_t H = x->shape[KEY].size[2], key = (first * H + head / (x->heads / H)) * x->K;
  const int64_t gate = first * x->heads + head;
  const recurrence r = {.T = T,
                        .K = x->K,
                        .V = x->V,
                        .scale = 1 / sqrt((double)x->K),
                        .feedback_after_decay = x->option,
                        .q = x->input[Q] + key,
                        .k = x->input[KEY] + key,
                        .p = x->input[x->shape[P].rank ? P : KEY] + key,
                        .v = x->input[VALUE] + gate * x->V,
                        .beta = x->input[BETA] + gate,
                        .g = x->input[GATE] + gate,
                        .key_stride = H * x->K,
                        .value_stride = x->heads * x->V,
                        .gate_stride = x->heads,
                        .o = o};
  recurrence_run(&r, state);
}

static const scan_engine engine = {COMBA_OP_delta_rule, INPUTS, VALUE, GATE, names, attributes, run_recurrence};

/* Unit keys, beta in (0, 1), decay between e^-1 and 1. */
static scan_problem create(int64_t B, int64_t T, int64_t H, int64_t HV, int64_t K, int64_t V) {
  scan_problem x = scan_create(&engine, B, T, HV, K, V);
  for (int i = Q; i <= P; i++) fill_unit(scan_operand(&x, i, COMBA_SHAPE(B, T, H, K)), B * T * H, K, (uint64_t)i);
  fill_normal(scan_operand(&x, VALUE, COMBA_SHAPE(B, T, HV, V)), B * T * HV * V, 1, VALUE);
  fill_uniform(scan_operand(&x, BETA, COMBA_SHAPE(B, T, HV)), B * T * HV, 0, 1, BETA);
  fill_uniform(scan_operand(&x, GATE, COMBA_SHAPE(B, T, HV)), B * T * HV, -1, 0, GATE);
  return x;
}

/* ---- Equality with the recurrence ---------------------------------------------------------------------------------- */

static const int64_t lengths[] = {1, 2, 63, 64, 65, 150}, key_sizes[] = {16, 24, 64, 100, 128, 256};
enum { SIZES = 6 };

START_TEST(both_forms_equal_the_recurrence) {
  const int64_t T = lengths[_i / SIZES], K = key_sizes[_i % SIZES];
  scan_problem x = create(1, T, 1, 2, K, K == 24 ? 50 : 24);
  for (int after = 0; after < 2; after++) {
    x.option = after;
    scan_expect_right(&x, 2e-5);
  }
  scan_free(&x);
}
END_TEST

START_TEST(optional_inputs_may_be_absent) {
  scan_problem x = create(2, 70, 2, 2, 16, 24);
  if (!(_i & 1)) scan_leave_out(&x, P);
  if (!(_i & 2)) scan_leave_out(&x, STATE);
  scan_expect_right(&x, 2e-5);
  scan_free(&x);
}
END_TEST

/* ---- Properties ---------------------------------------------------------------------------------------------------- */

START_TEST(split_anywhere_equals_whole) {
  static const int64_t cuts[] = {1, 2, 31, 63, 64, 65, 100, 127, 128, 149};
  scan_problem x = create(2, 150, 1, 2, 24, 40);
  scan_expect_pieces_right(&x, (const int64_t[]){cuts[_i], 150}, 2);
  scan_free(&x);
}
END_TEST

START_TEST(token_by_token_equals_whole) {
  int64_t end[150];
  for (int i = 0; i < 150; i++) end[i] = i + 1;
  scan_problem x = create(1, 150, 2, 2, 16, 24);
  scan_expect_pieces_right(&x, end, 150);
  scan_free(&x);
}
END_TEST

START_TEST(packed_sequences_are_separate) {
  scan_problem x = create(1, 200, 2, 4, 24, 16);
  scan_pack(&x);
  scan_expect_right(&x, 2e-5);
  scan_free(&x);
}
END_TEST

START_TEST(future_leaves_the_past_as_it_is) {
  static const int64_t changes[] = {1, 17, 63, 64, 65, 100, 149};
  scan_problem x = create(1, 150, 1, 2, 24, 40);
  scan_expect_causal(&x, changes[_i]);
  scan_free(&x);
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
  const op_variant variant = scan_fastest();
  for (int m = 0; m < SCAN_MODES; m++) {
    scan_problem x = create(2, 100, 4, 4, 24, 40), permuted = create(2, 100, 4, 4, 24, 40);
    for (int i = 0; i <= STATE; i++) {
      const int64_t rows = i == STATE ? x.B : x.B * x.T;
      permute(x.input[i], permuted.input[i], rows, x.heads, scan_count(&x, i) / (rows * x.heads), order);
    }
    scan_result y = scan_run(&x, &variant, scan_modes[m], false),
                found = scan_run(&permuted, &variant, scan_modes[m], false), expected = scan_result_create(&x);
    permute(y.o, expected.o, x.B * x.T, x.heads, x.V, order);
    permute(y.final_state, expected.final_state, x.B, x.heads, x.K * x.V, order);
    scan_expect_close(&x, &found, &expected, 1e-6);
    scan_result_free(&y);
    scan_result_free(&found);
    scan_result_free(&expected);
    scan_free(&x);
    scan_free(&permuted);
  }
}
END_TEST

/* Without writes the state decays and nothing else: o_t = scale e^{g_1 + ... + g_t} S_0^T q_t. */
START_TEST(beta_zero_is_pure_decay) {
  const op_variant variant = scan_fastest();
  scan_problem x = create(1, 100, 1, 1, 24, 40);
  fill_constant(x.input[BETA], scan_count(&x, BETA), 0);
  fill_uniform(x.input[GATE], scan_count(&x, GATE), -0.05, 0, GATE);
  double *o = op_memory((size_t)scan_outputs(&x) * sizeof(double)), decay = 0;
  for (int64_t t = 0; t < x.T; t++) {
    decay += x.input[GATE][t];
    for (int64_t j = 0; j < x.V; j++) {
      double sum = 0;
      for (int64_t i = 0; i < x.K; i++) sum += x.input[STATE][i * x.V + j] * x.input[Q][t * x.K + i];
      o[t * x.V + j] = exp(decay) / sqrt((double)x.K) * sum;
    }
  }
  for (int m = 0; m < SCAN_MODES; m++) {
    scan_result y = scan_run(&x, &variant, scan_modes[m], false);
    ck_assert_close(y.o, o, scan_outputs(&x), 1e-5);
    scan_result_free(&y);
  }
  free(o);
  scan_free(&x);
}
END_TEST

START_TEST(output_is_linear_in_v_and_the_state) {
  scan_problem x = create(1, 130, 1, 2, 24, 40);
  scan_expect_linear(&x);
  scan_free(&x);
}
END_TEST

START_TEST(final_state_may_lie_on_the_initial_one) {
  static const int64_t cases[] = {1, 3, 65};
  scan_problem x = create(2, cases[_i / SCAN_MODES], 1, 2, 24, 40);
  scan_expect_in_place(&x, scan_modes[_i % SCAN_MODES]);
  scan_free(&x);
}
END_TEST

/* ---- Hard values --------------------------------------------------------------------------------------------------- */

/* The worst case of the triangular inverse: every key, feedback and query the same, full writes, no decay. */
static void repeat_one_key(scan_problem *x) {
  for (int i = Q; i <= P; i++)
    for (int64_t row = 1; row < x->B * x->T * x->shape[i].size[2]; row++)
      memcpy(x->input[i] + row * x->K, x->input[KEY], (size_t)x->K * sizeof(double));
  for (int i = Q; i <= P; i++) memcpy(x->input[i], x->input[KEY], (size_t)x->K * sizeof(double));
  fill_constant(x->input[BETA], scan_count(x, BETA), 1);
  scan_forget_nothing(x);
}

/* One token in the middle of a chunk forgets; the tokens around it do not: sums of gates must not lose the weak ones. */
static void forget_once(scan_problem *x) {
  fill_constant(x->input[GATE], scan_count(x, GATE), -0.01);
  for (int64_t t = 30; t < x->T; t += 64)
    for (int64_t h = 0; h < x->heads; h++) x->input[GATE][t * x->heads + h] = -100;
}

static void saturate_beta(scan_problem *x) {
  for (int64_t i = 0; i < scan_count(x, BETA); i++) x->input[BETA][i] = (double)(i / 3 % 2);
  scan_forget_nothing(x);
}

static void overwrite_twice(scan_problem *x) { /* beta = 2 reflects the state at each key */
  fill_constant(x->input[BETA], scan_count(x, BETA), 2);
  memcpy(x->input[P], x->input[KEY], (size_t)scan_count(x, P) * sizeof(double));
  fill_constant(x->input[GATE], scan_count(x, GATE), -0.001);
}

static void zero_keys(scan_problem *x) {
  fill_constant(x->input[KEY], scan_count(x, KEY) / 2, 0);
}

static void (*const hard[])(scan_problem *x) = {
    scan_forget_everything, scan_forget_nothing, repeat_one_key, scan_mix_gates, forget_once,
    saturate_beta,          overwrite_twice,     zero_keys};
enum { HARD = sizeof hard / sizeof *hard };

START_TEST(hard_values_are_right) {
  scan_problem x = create(1, 150, 1, 2, 64, 24);
  hard[_i / 2](&x);
  x.option = _i % 2;
  scan_expect_right(&x, 1e-4);
  scan_free(&x);
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
  tcase_add_test(properties, output_is_linear_in_v_and_the_state);
  tcase_add_loop_test(properties, final_state_may_lie_on_the_initial_one, 0, 3 * SCAN_MODES);
  tcase_add_loop_test(values, hard_values_are_right, 0, 2 * HARD);
  suite_add_tcase(suite, equality);
  suite_add_tcase(suite, properties);
  suite_add_tcase(suite, values);
  return run_suite(suite);
}
