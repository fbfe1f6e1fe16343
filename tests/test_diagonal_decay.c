/* Properties of the engine with diagonal decay: both forms equal the recurrence, and hold what the recurrence implies. */
#include "oracle/diagonal_recurrence.h"
#include "scan_case.h"

enum { Q, KEY, VALUE, GATE, A, B, STATE, CU_SEQLENS, INPUTS };
static const char *const names[] = {"q", "k", "v", "g", "a", "b", "initial state"};

/* The option: read_after_decay. */
static const void *attributes(int64_t option, comba_mode mode) {
  static comba_diagonal_decay_attributes attributes;
  attributes = (comba_diagonal_decay_attributes){.read_after_decay = option, .mode = mode};
  return &attributes;
}

static void recurrence(const scan_problem *x, int64_t first, int64_t T, int64_t head, double *o, double *state) {
  const double *operand[STATE];
  int64_t stride[STATE];
  for (int i = 0; i < STATE; i++) {
    const int64_t heads = x->shape[i].size[2], width = i == VALUE ? x->V : x->K;
    stride[i] = heads * width;
    operand[i] = x->shape[i].rank ? x->input[i] + first * stride[i] + head / (x->heads / heads) * width : NULL;
  }
  const diagonal_recurrence r = {.T = T,
                                 .K = x->K,
                                 .V = x->V,
                                 .scale = 1 / sqrt((double)x->K),
                                 .read_after_decay = x->option,
                                 .q = operand[Q],
                                 .k = operand[KEY],
                                 .v = operand[VALUE],
                                 .g = operand[GATE],
                                 .a = operand[A],
                                 .b = operand[B],
                                 .stride_q = stride[Q],
                                 .stride_k = stride[KEY],
                                 .stride_v = stride[VALUE],
                                 .stride_g = stride[GATE],
                                 .stride_a = stride[A],
                                 .stride_b = stride[B],
                                 .stride_o = x->heads * x->V,
                                 .o = o};
  diagonal_recurrence_run(&r, state);
}

static const scan_engine engine = {COMBA_OP_diagonal_decay, INPUTS, VALUE, GATE, names, attributes, recurrence};

/* Unit readers and writers, decays between e^-1 and 1; `heads` of each operand. */
static scan_problem create(int64_t batch, int64_t T, const int64_t heads[STATE], int64_t K, int64_t V) {
  int64_t most = 1;
  for (int i = 0; i < STATE; i++) most = heads[i] > most ? heads[i] : most;
  scan_problem x = scan_create(&engine, batch, T, most, K, V);
  for (int i = 0; i < STATE; i++) {
    double *values = scan_operand(&x, i, COMBA_SHAPE(batch, T, heads[i], i == VALUE ? V : K));
    const int64_t count = scan_count(&x, i);
    if (i == VALUE)
      fill_normal(values, count, 1, VALUE);
    else if (i == GATE)
      fill_uniform(values, count, -1, 0, GATE);
    else
      fill_unit(values, count / K, K, (uint64_t)i);
  }
  return x;
}

static const int64_t two[STATE] = {2, 2, 2, 2, 2, 2};

/* Without the low-rank term. */
static void leave_out_low_rank(scan_problem *x) {
  scan_leave_out(x, A);
  scan_leave_out(x, B);
}

/* ---- Equality with the recurrence ---------------------------------------------------------------------------------- */

static const int64_t lengths[] = {1, 2, 63, 64, 65, 150}, key_sizes[] = {16, 24, 64, 100, 128, 256};
enum { SIZES = 6 };

START_TEST(both_forms_equal_the_recurrence) {
  const int64_t T = lengths[_i / SIZES], K = key_sizes[_i % SIZES];
  scan_problem x = create(1, T, two, K, K == 24 ? 50 : 24);
  for (int after = 0; after < 2; after++) {
    x.option = after;
    scan_expect_right(&x, 2e-5);
  }
  leave_out_low_rank(&x);
  scan_expect_right(&x, 2e-5);
  scan_free(&x);
}
END_TEST

START_TEST(optional_inputs_may_be_absent) {
  scan_problem x = create(2, 70, two, 16, 24);
  if (!(_i & 1)) leave_out_low_rank(&x);
  if (!(_i & 2)) scan_leave_out(&x, STATE);
  scan_expect_right(&x, 2e-5);
  scan_free(&x);
}
END_TEST

START_TEST(operands_may_share_heads) {
  static const int64_t heads[][STATE] = {{4, 2, 2, 2, 2, 2}, {2, 2, 4, 4, 2, 2}, {1, 4, 2, 4, 4, 1}};
  scan_problem x = create(2, 70, heads[_i], 16, 24);
  scan_expect_right(&x, 2e-5);
  scan_free(&x);
}
END_TEST

/* ---- Properties ---------------------------------------------------------------------------------------------------- */

START_TEST(split_anywhere_equals_whole) {
  static const int64_t cuts[] = {1, 2, 15, 16, 17, 31, 63, 64, 65, 100, 127, 128, 149};
  scan_problem x = create(1, 150, two, 24, 40);
  scan_expect_pieces_right(&x, (const int64_t[]){cuts[_i], 150}, 2);
  scan_free(&x);
}
END_TEST

START_TEST(token_by_token_equals_whole) {
  int64_t end[150];
  for (int i = 0; i < 150; i++) end[i] = i + 1;
  scan_problem x = create(1, 150, two, 24, 40);
  scan_expect_pieces_right(&x, end, 150);
  scan_free(&x);
}
END_TEST

START_TEST(packed_sequences_are_separate) {
  scan_problem x = create(1, 200, two, 24, 16);
  scan_pack(&x);
  scan_expect_right(&x, 2e-5);
  scan_free(&x);
}
END_TEST

START_TEST(future_leaves_the_past_as_it_is) {
  static const int64_t changes[] = {1, 16, 17, 63, 64, 65, 100, 149};
  scan_problem x = create(1, 150, two, 24, 40);
  scan_expect_causal(&x, changes[_i]);
  scan_free(&x);
}
END_TEST

START_TEST(output_is_linear_in_v_and_the_state) {
  scan_problem x = create(1, 130, two, 24, 40);
  scan_expect_linear(&x);
  scan_free(&x);
}
END_TEST

START_TEST(final_state_may_lie_on_the_initial_one) {
  static const int64_t cases[] = {1, 3, 65};
  scan_problem x = create(2, cases[_i / SCAN_MODES], two, 24, 40);
  scan_expect_in_place(&x, scan_modes[_i % SCAN_MODES]);
  scan_free(&x);
}
END_TEST

/* ---- Hard values --------------------------------------------------------------------------------------------------- */

/* One token in a block forgets half of its channels; the tokens around it do not. */
static void forget_once(scan_problem *x) {
  const int64_t row = scan_row(x, GATE);
  fill_constant(x->input[GATE], scan_count(x, GATE), -0.01);
  for (int64_t t = 5; t < x->T; t += 16)
    for (int64_t i = 0; i < row; i += 2) x->input[GATE][t * row + i] = -100;
}

/* The delta rule at its hardest: one key, full writes, no decay. */
static void repeat_one_key(scan_problem *x) {
  scan_forget_nothing(x);
  for (int64_t i = 0; i < scan_count(x, KEY); i++) {
    x->input[KEY][i] = x->input[A][i] = x->input[A][i % x->K];
    x->input[B][i] = -x->input[A][i];
  }
}

static void zero_writers(scan_problem *x) {
  fill_constant(x->input[KEY], scan_count(x, KEY) / 2, 0);
  fill_constant(x->input[B], scan_count(x, B) / 3, 0);
}

static void (*const hard[])(scan_problem *x) = {
    scan_forget_everything, scan_forget_nothing, scan_mix_gates, forget_once, repeat_one_key, zero_writers};
enum { HARD = sizeof hard / sizeof *hard };

START_TEST(hard_values_are_right) {
  scan_problem x = create(1, 150, two, 64, 24);
  hard[_i / 2](&x);
  x.option = _i % 2;
  scan_expect_right(&x, 1e-4);
  scan_free(&x);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("diagonal decay");
  TCase *equality = tcase_create("equality"), *properties = tcase_create("properties"),
        *values = tcase_create("values");
  tcase_add_loop_test(equality, both_forms_equal_the_recurrence, 0, SIZES * SIZES);
  tcase_add_loop_test(equality, optional_inputs_may_be_absent, 0, 4);
  tcase_add_loop_test(equality, operands_may_share_heads, 0, 3);
  tcase_add_loop_test(properties, split_anywhere_equals_whole, 0, 13);
  tcase_add_test(properties, token_by_token_equals_whole);
  tcase_add_test(properties, packed_sequences_are_separate);
  tcase_add_loop_test(properties, future_leaves_the_past_as_it_is, 0, 8);
  tcase_add_test(properties, output_is_linear_in_v_and_the_state);
  tcase_add_loop_test(properties, final_state_may_lie_on_the_initial_one, 0, 3 * SCAN_MODES);
  tcase_add_loop_test(values, hard_values_are_right, 0, 2 * HARD);
  suite_add_tcase(suite, equality);
  suite_add_tcase(suite, properties);
  suite_add_tcase(suite, values);
  return run_suite(suite);
}
