/* Properties of the engine with scalar decay: both forms equal the recurrence, and hold what the recurrence implies. */
#include "oracle/scalar_recurrence.h"
#include "scan_case.h"

enum { Q, KEY, VALUE, GATE, STATE, CU_SEQLENS, INPUTS };
static const char *const names[] = {"q", "k", "v", "g", "initial state"};

/* The option: first exponent of a retention, which needs no g. */
static const void *attributes(int64_t option, comba_mode mode) {
  static comba_scalar_decay_attributes attributes;
  attributes = (comba_scalar_decay_attributes){.retention = option, .mode = mode};
  return &attributes;
}

static void recurrence(const scan_problem *x, int64_t first, int64_t T, int64_t head, double *o, double *state) {
  const int64_t H = x->shape[KEY].size[2], key = (first * H + head / (x->heads / H)) * x->K;
  const scalar_recurrence r = {.T = T,
                               .K = x->K,
                               .V = x->V,
                               .scale = 1 / sqrt((double)x->K),
                               .decay = x->option ? 1 - exp2(-(double)(x->option + head)) : 1,
                               .q = x->input[Q] + key,
                               .k = x->input[KEY] + key,
                               .v = x->input[VALUE] + (first * x->heads + head) * x->V,
                               .g = x->shape[GATE].rank ? x->input[GATE] + first * x->heads + head : NULL,
                               .key_stride = H * x->K,
                               .value_stride = x->heads * x->V,
                               .gate_stride = x->heads,
                               .o = o};
  scalar_recurrence_run(&r, state);
}

static const scan_engine engine = {COMBA_OP_scalar_decay, INPUTS, VALUE, GATE, names, attributes, recurrence};

/* Unit keys, decay between e^-1 and 1. */
static scan_problem create(int64_t B, int64_t T, int64_t H, int64_t HV, int64_t K, int64_t V) {
  scan_problem x = scan_create(&engine, B, T, HV, K, V);
  for (int i = Q; i <= KEY; i++) fill_unit(scan_operand(&x, i, COMBA_SHAPE(B, T, H, K)), B * T * H, K, (uint64_t)i);
  fill_normal(scan_operand(&x, VALUE, COMBA_SHAPE(B, T, HV, V)), B * T * HV * V, 1, VALUE);
  fill_uniform(scan_operand(&x, GATE, COMBA_SHAPE(B, T, HV)), B * T * HV, -1, 0, GATE);
  return x;
}

/* ---- Equality with the recurrence ---------------------------------------------------------------------------------- */

static const int64_t lengths[] = {1, 2, 63, 64, 65, 150}, key_sizes[] = {1, 16, 24, 64, 100, 256};
enum { SIZES = 6 };

START_TEST(both_forms_equal_the_recurrence) {
  const int64_t T = lengths[_i / SIZES], K = key_sizes[_i % SIZES];
  scan_problem x = create(1, T, 1, 2, K, K == 24 ? 50 : 24);
  scan_expect_right(&x, 1e-5);
  scan_free(&x);
}
END_TEST

START_TEST(optional_inputs_may_be_absent) {
  scan_problem x = create(2, 70, 2, 2, 16, 24);
  if (!(_i & 1)) scan_leave_out(&x, GATE);
  if (!(_i & 2)) scan_leave_out(&x, STATE);
  x.option = _i & 4;
  scan_expect_right(&x, 1e-5);
  scan_free(&x);
}
END_TEST

START_TEST(keys_may_be_shared) {
  static const int64_t heads[][2] = {{1, 3}, {2, 4}, {4, 4}};
  scan_problem x = create(2, 70, heads[_i][0], heads[_i][1], 16, 24);
  scan_expect_right(&x, 1e-5);
  scan_free(&x);
}
END_TEST

/* ---- Properties ---------------------------------------------------------------------------------------------------- */

START_TEST(split_anywhere_equals_whole) {
  static const int64_t cuts[] = {1, 2, 31, 63, 64, 65, 100, 127, 128, 149};
  scan_problem x = create(1, 150, 1, 2, 24, 40);
  scan_expect_pieces_right(&x, (const int64_t[]){cuts[_i], 150}, 2);
  scan_free(&x);
}
END_TEST

START_TEST(token_by_token_equals_whole) {
  int64_t end[150];
  for (int i = 0; i < 150; i++) end[i] = i + 1;
  scan_problem x = create(1, 150, 1, 2, 24, 40);
  scan_expect_pieces_right(&x, end, 150);
  scan_free(&x);
}
END_TEST

START_TEST(packed_sequences_are_separate) {
  scan_problem x = create(1, 200, 2, 4, 24, 16);
  scan_pack(&x);
  if (_i) scan_leave_out(&x, GATE);
  x.option = 5;
  scan_expect_right(&x, 1e-5);
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

/* Without decay the order of the tokens does not matter to the state. */
START_TEST(final_state_forgets_the_order_without_decay) {
  const op_variant variant = scan_fastest();
  scan_problem x = create(1, 130, 1, 2, 24, 40);
  scan_leave_out(&x, GATE);
  for (int m = 0; m < SCAN_MODES; m++) {
    scan_result forward = scan_run(&x, &variant, scan_modes[m], false);
    for (int i = KEY; i <= VALUE; i++) {
      const int64_t row = scan_row(&x, i);
      for (int64_t t = 0; t < x.T / 2; t++)
        for (int64_t c = 0; c < row; c++) {
          double *one = &x.input[i][t * row + c], *other = &x.input[i][(x.T - 1 - t) * row + c], kept = *one;
          *one = *other;
          *other = kept;
        }
    }
    scan_result reversed = scan_run(&x, &variant, scan_modes[m], false);
    ck_assert_close(reversed.final_state, forward.final_state, scan_states(&x), 1e-5);
    scan_result_free(&forward);
    scan_result_free(&reversed);
  }
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

/* One token in the middle of a chunk forgets; the tokens around it do not: sums of gates must not lose the weak ones. */
static void forget_once(scan_problem *x) {
  fill_constant(x->input[GATE], scan_count(x, GATE), -0.01);
  for (int64_t t = 30; t < x->T; t += 64)
    for (int64_t h = 0; h < x->heads; h++) x->input[GATE][t * x->heads + h] = -100;
}

static void zero_keys(scan_problem *x) {
  fill_constant(x->input[KEY], scan_count(x, KEY) / 2, 0);
}

static void (*const hard[])(scan_problem *x) = {scan_forget_everything, scan_forget_nothing, scan_mix_gates,
                                                forget_once, zero_keys};
enum { HARD = sizeof hard / sizeof *hard };

START_TEST(hard_values_are_right) {
  scan_problem x = create(1, 150, 1, 2, 64, 24);
  hard[_i](&x);
  scan_expect_right(&x, 1e-4);
  scan_free(&x);
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
  tcase_add_loop_test(properties, final_state_may_lie_on_the_initial_one, 0, 3 * SCAN_MODES);
  tcase_add_loop_test(values, hard_values_are_right, 0, HARD);
  suite_add_tcase(suite, equality);
  suite_add_tcase(suite, properties);
  suite_add_tcase(suite, values);
  return run_suite(suite);
}
