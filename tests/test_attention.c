/* Properties of softmax attention: equal to the formula, forward and backward; causality; windows; packed sequences; and a
 * decoder's ring of keys and values gives what the whole sequence gives. */
#include "core/backend.h"
#include "op_case.h"
#include "ops/ops.h"
#include "oracle/softmax_attention.h"
#include "testing.h"

enum { Q, KEY, VALUE, CU_SEQLENS, INPUTS };

typedef struct problem {
  int64_t B, T, H, HKV, D;
  comba_attention_attributes attributes;
  int64_t sequences; /* of cu_seqlens; 0 without */
  double *input[INPUTS];
} problem;

typedef struct result {
  double *o, *gradient[CU_SEQLENS];
} result;

static int64_t query_count(const problem *x) {
  return x->B * x->T * x->H * x->D;
}

static int64_t key_count(const problem *x) {
  return x->B * x->T * x->HKV * x->D;
}

static int64_t count_of(const problem *x, int input) {
  return input == Q ? query_count(x) : key_count(x);
}

static problem problem_create(int64_t B, int64_t T, int64_t H, int64_t HKV, int64_t D, bool causal, int64_t window) {
  problem x = {.B = B, .T = T, .H = H, .HKV = HKV, .D = D, .attributes = {.causal = causal, .window = window}};
  for (int i = 0; i < CU_SEQLENS; i++) {
    x.input[i] = op_memory((size_t)count_of(&x, i) * sizeof(double));
    fill_normal(x.input[i], count_of(&x, i), 1, (uint64_t)i);
  }
  return x;
}

static void problem_free(problem *x) {
  for (int i = 0; i < INPUTS; i++) free(x->input[i]);
}

static void result_free(result *y) {
  free(y->o);
  for (int i = 0; i < CU_SEQLENS; i++) free(y->gradient[i]);
}

static double *output_gradient(const problem *x) {
  double *gradient = op_memory((size_t)query_count(x) * sizeof *gradient);
  fill_normal(gradient, query_count(x), 1, 20);
  return gradient;
}

static op_variant fastest(void) {
  op_variant variant[OP_VARIANTS];
  const int count = op_variants(variant);
  return variant[count - 1];
}

static result run(const problem *x, const op_variant *variant) {
  const comba_shape shape[INPUTS] = {COMBA_SHAPE(x->B, x->T, x->H, x->D), COMBA_SHAPE(x->B, x->T, x->HKV, x->D),
                                     COMBA_SHAPE(x->B, x->T, x->HKV, x->D),
                                     x->sequences ? COMBA_SHAPE(x->sequences + 1) : (comba_shape){0}};
  op_instance instance;
  ck_assert_msg(op_instance_create(&instance, variant->op[COMBA_OP_attention], variant->real_size, &x->attributes,
                                   shape) == COMBA_OK,
                "%s", comba_last_error());
  for (int i = 0; i < INPUTS; i++)
    if (shape[i].rank) op_write(&instance.input[i], x->input[i]);
  op_instance_forward(&instance, true);
  result y = {op_memory((size_t)query_count(x) * sizeof(double)), {NULL}};
  op_read(&instance.output[0], y.o);
  double *gradient = output_gradient(x);
  op_write(&instance.output_gradient[0], gradient);
  free(gradient);
  op_instance_backward(&instance, 7, 0, 1);
  for (int i = 0; i < CU_SEQLENS; i++) {
    y.gradient[i] = op_memory((size_t)count_of(x, i) * sizeof(double));
    op_read(&instance.input_gradient[i], y.gradient[i]);
  }
  const char *damage = op_instance_damage(&instance);
  ck_assert_msg(!damage, "something was written outside %s", damage);
  op_instance_free(&instance);
  return y;
}

/* The formula, for each head of each sequence. */
static result run_formula(const problem *x) {
  result y = {op_memory((size_t)query_count(x) * sizeof(double)), {NULL}};
  for (int i = 0; i < CU_SEQLENS; i++) y.gradient[i] = op_memory((size_t)count_of(x, i) * sizeof(double));
  double *gradient = output_gradient(x);
  const int64_t sequences = x->sequences ? x->sequences : x->B, group = x->H / x->HKV;
  for (int64_t n = 0; n < sequences; n++)
    for (int64_t h = 0; h < x->H; h++) {
      const int64_t first = x->sequences ? (int64_t)x->input[CU_SEQLENS][n] : n * x->T;
      const int64_t end = x->sequences ? (int64_t)x->input[CU_SEQLENS][n + 1] : first + x->T;
      const int64_t query = (first * x->H + h) * x->D, key = (first * x->HKV + h / group) * x->D;
      const softmax_attention a = {.T = end - first,
                                   .S = end - first,
                                   .D = x->D,
                                   .window = x->attributes.window,
                                   .causal = x->attributes.causal,
                                   .scale = x->attributes.scale ? x->attributes.scale : 1 / sqrt((double)x->D),
                                   .q = x->input[Q] + query,
                                   .k = x->input[KEY] + key,
                                   .v = x->input[VALUE] + key,
                                   .query_stride = x->H * x->D,
                                   .key_stride = x->HKV * x->D,
                                   .o = y.o + query};
      softmax_attention_run(&a);
      softmax_attention_gradient(&a, gradient + query, y.gradient[Q] + query, y.gradient[KEY] + key,
                                 y.gradient[VALUE] + key);
    }
  free(gradient);
  return y;
}

static void expect_right(const problem *x, double tolerance) {
  static const char *const names[] = {"q", "k", "v"};
  const op_variant variant[] = {fastest(), op_oracle};
  result expected = run_formula(x);
  for (int i = 0; i < 2; i++) {
    const double limit = variant[i].real_size == sizeof(double) ? 1e-11 : tolerance;
    result found = run(x, &variant[i]);
    ck_assert_close(found.o, expected.o, query_count(x), limit);
    for (int k = 0; k < CU_SEQLENS; k++) {
      const double error = relative_error(found.gradient[k], expected.gradient[k], count_of(x, k));
      ck_assert_msg(error <= limit, "%s: gradient of %s: relative error %.3g, tolerance %.3g", variant[i].name,
                    names[k], error, limit);
    }
    result_free(&found);
  }
  result_free(&expected);
}

/* ---- Equality with the formula ------------------------------------------------------------------------------------- */

static const int64_t lengths[] = {1, 2, 63, 64, 65, 150}, head_sizes[] = {16, 24, 64, 100, 128, 256};
enum { SIZES = 6 };

START_TEST(equals_the_formula) {
  const int64_t T = lengths[_i / SIZES], D = head_sizes[_i % SIZES];
  for (int causal = 0; causal < 2; causal++) {
    problem x = problem_create(1, T, 2, causal ? 1 : 2, D, causal, 0);
    expect_right(&x, 2e-5);
    problem_free(&x);
  }
}
END_TEST

START_TEST(window_limits_what_is_seen) {
  static const int64_t windows[] = {1, 2, 16, 63, 64, 65, 149, 150, 1000};
  problem x = problem_create(2, 150, 4, 2, 24, true, windows[_i]);
  expect_right(&x, 2e-5);
  problem_free(&x);
}
END_TEST

START_TEST(packed_sequences_are_separate) {
  static const double cu_seqlens[] = {0, 1, 1, 64, 128, 193, 200};
  problem x = problem_create(1, 200, 4, 2, 24, _i > 0, _i == 2 ? 20 : 0);
  x.sequences = 6;
  x.input[CU_SEQLENS] = op_memory(sizeof cu_seqlens);
  memcpy(x.input[CU_SEQLENS], cu_seqlens, sizeof cu_seqlens);
  expect_right(&x, 2e-5);
  problem_free(&x);
}
END_TEST

/* Scores of several hundred: the largest of a row must be taken off before the exponential. */
START_TEST(large_scores_are_right) {
  problem x = problem_create(1, 100, 2, 2, 64, _i, 0);
  for (int64_t i = 0; i < query_count(&x); i++) x.input[Q][i] *= 50;
  expect_right(&x, 1e-4);
  problem_free(&x);
}
END_TEST

START_TEST(scale_is_used) {
  problem x = problem_create(1, 70, 2, 2, 24, true, 0);
  x.attributes.scale = 0.7;
  expect_right(&x, 2e-5);
  problem_free(&x);
}
END_TEST

/* ---- Properties ---------------------------------------------------------------------------------------------------- */

START_TEST(future_leaves_the_past_as_it_is) {
  static const int64_t changes[] = {1, 17, 63, 64, 65, 100, 149};
  const int64_t t = changes[_i];
  const op_variant variant = fastest();
  problem x = problem_create(1, 150, 4, 2, 24, true, 0);
  result before = run(&x, &variant);
  for (int i = 0; i < CU_SEQLENS; i++)
    for (int64_t row = count_of(&x, i) / x.T, k = t * row; k < x.T * row; k++) x.input[i][k] = 3 - x.input[i][k];
  result after = run(&x, &variant);
  ck_assert(!memcmp(before.o, after.o, (size_t)(t * x.H * x.D) * sizeof(double)));
  ck_assert(memcmp(before.o, after.o, (size_t)query_count(&x) * sizeof(double)));
  result_free(&before);
  result_free(&after);
  problem_free(&x);
}
END_TEST

/* Without a mask the order of keys and values is nothing to the result. */
START_TEST(order_of_keys_does_not_matter) {
  const op_variant variant = fastest();
  problem x = problem_create(1, 90, 2, 2, 24, false, 0);
  result before = run(&x, &variant);
  for (int i = KEY; i <= VALUE; i++) {
    const int64_t row = x.HKV * x.D;
    for (int64_t t = 0; t < x.T / 2; t++)
      for (int64_t k = 0; k < row; k++) {
        const double value = x.input[i][t * row + k];
        x.input[i][t * row + k] = x.input[i][(x.T - 1 - t) * row + k];
        x.input[i][(x.T - 1 - t) * row + k] = value;
      }
  }
  result after = run(&x, &variant);
  ck_assert_close(after.o, before.o, query_count(&x), 1e-5);
  result_free(&before);
  result_free(&after);
  problem_free(&x);
}
END_TEST

/* ---- Decoding ------------------------------------------------------------------------------------------------------ */

enum { CACHE_KEY = 3, CACHE_VALUE, POSITION, DECODE_INPUTS };

/* Feeds the sequence in pieces of the given lengths, over and over, through a ring that is updated where it lies. The ring
 * starts with NaN: what was never written must never be read. */
static double *decode(const problem *x, int64_t capacity, const int64_t *piece, int pieces) {
  const op_variant variant = fastest();
  const comba_op *op = variant.op[COMBA_OP_attention_decode];
  double *o = op_memory((size_t)query_count(x) * sizeof *o), *ring[2];
  const int64_t query_row = x->H * x->D, key_row = x->HKV * x->D, ring_count = x->B * capacity * key_row;
  for (int i = 0; i < 2; i++) {
    ring[i] = op_memory((size_t)ring_count * sizeof(double));
    for (int64_t k = 0; k < ring_count; k++) ring[i][k] = NAN;
  }
  for (int64_t t = 0, step = 0; t < x->T; step++) {
    const int64_t left = x->T - t, length = piece[step % pieces] < left ? piece[step % pieces] : left;
    const comba_shape cache = COMBA_SHAPE(x->B, capacity, x->HKV, x->D),
                      fresh = COMBA_SHAPE(x->B, length, x->HKV, x->D);
    const comba_shape shape[DECODE_INPUTS] = {
        COMBA_SHAPE(x->B, length, x->H, x->D), fresh, fresh, cache, cache, COMBA_SHAPE(1)};
    op_instance instance;
    ck_assert_msg(op_instance_create(&instance, op, variant.real_size, &x->attributes, shape) == COMBA_OK, "%s",
                  comba_last_error());
    for (int i = Q; i <= VALUE; i++) {
      const int64_t row = i == Q ? query_row : key_row;
      for (int64_t b = 0; b < x->B; b++)
        for (int64_t k = 0; k < length * row; k++)
          op_set(&instance.input[i], b * length * row + k, x->input[i][(b * x->T + t) * row + k]);
    }
    op_set(&instance.input[POSITION], 0, (double)t);
    for (int i = 0; i < 2; i++) {
      op_write(&instance.input[CACHE_KEY + i], ring[i]);
      instance.call.output[1 + i].data = instance.input[CACHE_KEY + i].data;
    }
    op_instance_forward(&instance, false);
    for (int i = 0; i < 2; i++) op_read(&instance.input[CACHE_KEY + i], ring[i]);
    for (int64_t b = 0; b < x->B; b++)
      for (int64_t k = 0; k < length * query_row; k++)
        o[(b * x->T + t) * query_row + k] = op_get(&instance.output[0], b * length * query_row + k);
    const char *damage = op_instance_damage(&instance);
    ck_assert_msg(!damage, "something was written outside %s", damage);
    op_instance_free(&instance);
    t += length;
  }
  free(ring[0]);
  free(ring[1]);
  return o;
}

START_TEST(decoding_equals_the_whole) {
  static const struct {
    int64_t window, capacity, piece[3];
  } cases[] = {{0, 150, {1, 1, 1}},  {0, 200, {64, 1, 7}}, {0, 150, {150, 1, 1}}, {16, 16, {1, 1, 1}},
               {16, 40, {5, 1, 33}}, {16, 16, {5, 1, 16}}, {1, 1, {1, 1, 1}},     {33, 33, {100, 1, 1}},
               {16, 15, {1, 1, 1}},  {16, 15, {40, 3, 1}}};
  problem x = problem_create(2, 150, 4, 2, 24, true, cases[_i].window);
  result expected = run_formula(&x);
  double *o = decode(&x, cases[_i].capacity, cases[_i].piece, 3);
  ck_assert_close(o, expected.o, query_count(&x), 1e-5);
  free(o);
  result_free(&expected);
  problem_free(&x);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("attention");
  TCase *formula = tcase_create("formula"), *properties = tcase_create("properties"),
        *decoding = tcase_create("decoding");
  tcase_add_loop_test(formula, equals_the_formula, 0, SIZES * SIZES);
  tcase_add_loop_test(formula, window_limits_what_is_seen, 0, 9);
  tcase_add_loop_test(formula, packed_sequences_are_separate, 0, 3);
  tcase_add_loop_test(formula, large_scores_are_right, 0, 2);
  tcase_add_test(formula, scale_is_used);
  tcase_add_loop_test(properties, future_leaves_the_past_as_it_is, 0, 7);
  tcase_add_test(properties, order_of_keys_does_not_matter);
  tcase_add_loop_test(decoding, decoding_equals_the_whole, 0, 10);
  suite_add_tcase(suite, formula);
  suite_add_tcase(suite, properties);
  suite_add_tcase(suite, decoding);
  return run_suite(suite);
}
