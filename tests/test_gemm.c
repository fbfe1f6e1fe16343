/* Matrix products against three loops in double, and their bits against the number of threads and the alignment. */
#include <stdbool.h>
#include <string.h>

#include "core/gemm.h"
#include "core/parallel.h"
#include "core/status.h"
#include "testing.h"

enum { PAD = 3, MOST_THREADS = 3 };

/* One tile; rows or columns in several; k in several; single rows and columns; sizes off every multiple. */
static const int64_t sizes[][3] = {{1, 1, 1},      {3, 5, 7},     {17, 33, 65},    {300, 200, 50},  {64, 64, 4100},
                                   {4, 256, 4097}, {4096, 4, 30}, {513, 257, 129}, {1, 1000, 1000}, {129, 127, 2047}};
enum { SIZES = sizeof sizes / sizeof *sizes };

typedef struct operands {
  char transpose_a, transpose_b;
  int64_t m, n, k, lda, ldb, ldc;
  int64_t elements_a, elements_b, elements_c;
  double alpha, beta;
  double *a, *b, *c, *expected;
  float *a32, *b32;
} operands;

/* Variant 0 to 7: each matrix transposed or not, C overwritten (it holds NaN) or added to. Rows are longer than needed. */
static operands create(const int64_t size[3], int variant) {
  operands o = {.transpose_a = "NT"[variant & 1],
                .transpose_b = "NT"[variant >> 1 & 1],
                .m = size[0],
                .n = size[1],
                .k = size[2],
                .alpha = 0.75,
                .beta = variant & 4 ? 0.5 : 0};
  const bool ta = o.transpose_a == 'T', tb = o.transpose_b == 'T';
  o.lda = (ta ? o.m : o.k) + PAD, o.ldb = (tb ? o.k : o.n) + PAD, o.ldc = o.n + PAD;
  o.elements_a = (ta ? o.k : o.m) * o.lda, o.elements_b = (tb ? o.n : o.k) * o.ldb, o.elements_c = o.m * o.ldc;
  o.a = malloc((size_t)o.elements_a * sizeof *o.a), o.b = malloc((size_t)o.elements_b * sizeof *o.b);
  o.c = malloc((size_t)o.elements_c * sizeof *o.c), o.expected = malloc((size_t)o.elements_c * sizeof *o.c);
  o.a32 = malloc((size_t)o.elements_a * sizeof *o.a32), o.b32 = malloc((size_t)o.elements_b * sizeof *o.b32);
  fill_normal(o.a, o.elements_a, 1, 1);
  fill_normal(o.b, o.elements_b, 1, 2);
  if (o.beta != 0)
    fill_normal(o.c, o.elements_c, 1, 3);
  else
    fill_constant(o.c, o.elements_c, NAN);
  for (int64_t i = 0; i < o.elements_a; i++) o.a32[i] = (float)o.a[i];
  for (int64_t i = 0; i < o.elements_b; i++) o.b32[i] = (float)o.b[i];
  memcpy(o.expected, o.c, (size_t)o.elements_c * sizeof *o.c);
  for (int64_t i = 0; i < o.m; i++)
    for (int64_t j = 0; j < o.n; j++) {
      double sum = 0;
      for (int64_t l = 0; l < o.k; l++)
        sum += o.a[ta ? l * o.lda + i : i * o.lda + l] * o.b[tb ? j * o.ldb + l : l * o.ldb + j];
      double *c = &o.expected[i * o.ldc + j];
      *c = o.alpha * sum + (o.beta != 0 ? o.beta * *c : 0);
    }
  return o;
}

static void destroy(operands *o) {
  free(o->a), free(o->b), free(o->c), free(o->expected), free(o->a32), free(o->b32);
}

/* C of a float32 product; a and b start `offset` floats behind where malloc put them. */
static float *product_f32(const operands *o, int threads, int offset) {
  float *a = malloc((size_t)(o->elements_a + offset) * sizeof *a),
        *b = malloc((size_t)(o->elements_b + offset) * sizeof *b);
  float *c = malloc((size_t)o->elements_c * sizeof *c);
  memcpy(a + offset, o->a32, (size_t)o->elements_a * sizeof *a);
  memcpy(b + offset, o->b32, (size_t)o->elements_b * sizeof *b);
  for (int64_t i = 0; i < o->elements_c; i++) c[i] = (float)o->c[i];
  ck_assert_int_eq(comba_set_threads(threads), COMBA_OK);
  comba_gemm_f32(o->transpose_a, o->transpose_b, o->m, o->n, o->k, (float)o->alpha, a + offset, o->lda, b + offset,
                 o->ldb, (float)o->beta, c, o->ldc);
  ck_assert_int_eq(comba_threads(), threads);
  free(a), free(b);
  return c;
}

static double *product_f64(const operands *o, int threads) {
  double *c = malloc((size_t)o->elements_c * sizeof *c);
  memcpy(c, o->c, (size_t)o->elements_c * sizeof *c);
  ck_assert_int_eq(comba_set_threads(threads), COMBA_OK);
  comba_gemm_f64(o->transpose_a, o->transpose_b, o->m, o->n, o->k, o->alpha, o->a, o->lda, o->b, o->ldb, o->beta, c,
                 o->ldc);
  return c;
}

/* The product is right, and what lies between its rows is as it was (NaN: compared as bytes). */
static void check(const operands *o, const double *found, double tolerance) {
  for (int64_t i = 0; i < o->m; i++) {
    ck_assert_close(found + i * o->ldc, o->expected + i * o->ldc, o->n, tolerance);
    ck_assert_mem_eq(found + i * o->ldc + o->n, o->c + i * o->ldc + o->n, PAD * sizeof *found);
  }
}

START_TEST(product_is_right) {
  for (int variant = 0; variant < 8; variant++) {
    operands o = create(sizes[_i], variant);
    float *c32 = product_f32(&o, 1, 0);
    double *widened = malloc((size_t)o.elements_c * sizeof *widened), *c64 = product_f64(&o, 1);
    for (int64_t i = 0; i < o.elements_c; i++) widened[i] = isnan(c32[i]) ? o.c[i] : (double)c32[i];
    check(&o, widened, 2e-5);
    check(&o, c64, 1e-13);
    free(c32), free(widened), free(c64);
    destroy(&o);
  }
}
END_TEST

START_TEST(bits_do_not_depend_on_threads_or_alignment) {
  for (int variant = 0; variant < 8; variant++) {
    operands o = create(sizes[_i], variant);
    float *c32 = product_f32(&o, 1, 0);
    double *c64 = product_f64(&o, 1);
    for (int threads = 2; threads <= MOST_THREADS; threads++) {
      float *other32 = product_f32(&o, threads, 2 * threads - 1);
      double *other64 = product_f64(&o, threads);
      ck_assert_mem_eq(other32, c32, (size_t)o.elements_c * sizeof *c32);
      ck_assert_mem_eq(other64, c64, (size_t)o.elements_c * sizeof *c64);
      free(other32), free(other64);
    }
    free(c32), free(c64);
    destroy(&o);
  }
}
END_TEST

/* The serial product is the same inside and outside a parallel region. */
START_TEST(serial_product_is_one_result) {
  operands o = create((const int64_t[]){70, 90, 300}, 1);
  float *result[3];
  ck_assert_int_eq(comba_set_threads(2), COMBA_OK);
  for (int i = 0; i < 3; i++) result[i] = calloc((size_t)o.elements_c, sizeof(float));
#define SERIAL(c)                                                                                                      \
  comba_gemm_serial_f32(o.transpose_a, o.transpose_b, o.m, o.n, o.k, 1, o.a32, o.lda, o.b32, o.ldb, 0, c, o.ldc)
#pragma omp parallel for
  for (int i = 0; i < 2; i++) SERIAL(result[i]);
  SERIAL(result[2]);
  for (int i = 0; i < 2; i++) ck_assert_mem_eq(result[i], result[2], (size_t)o.elements_c * sizeof(float));
  for (int i = 0; i < 3; i++) free(result[i]);
  destroy(&o);
}
END_TEST

START_TEST(without_terms_c_is_scaled) {
  const float unused = 1;
  float c[] = {1, 2, 3, 4};
  comba_gemm_f32('N', 'N', 2, 2, 0, 1, &unused, 1, &unused, 2, 0.5f, c, 2);
  for (int i = 0; i < 4; i++) ck_assert_float_eq(c[i], 0.5f * (float)(i + 1));
  comba_gemm_f32('T', 'N', 2, 2, 0, 1, &unused, 2, &unused, 2, 0, c, 2);
  for (int i = 0; i < 4; i++) ck_assert_float_eq(c[i], 0);
  comba_gemm_f32('N', 'N', 0, 2, 1, 1, &unused, 1, &unused, 2, 0, NULL, 2);
}
END_TEST

START_TEST(library_has_a_name) {
  ck_assert_uint_gt(strlen(comba_gemm_library()), 5);
}
END_TEST

START_TEST(wrong_threads_are_refused) {
  ck_assert_int_eq(comba_set_threads(2), COMBA_OK);
  ck_assert_int_eq(comba_set_threads(-1), COMBA_ERROR_ARGUMENT);
  ck_assert_int_eq(comba_set_threads(1025), COMBA_ERROR_ARGUMENT);
  ck_assert_int_eq(comba_threads(), 2);
  ck_assert_int_eq(comba_set_threads(0), COMBA_OK);
  ck_assert_int_ge(comba_threads(), 1);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("gemm");
  TCase *products = tcase_create("products");
  tcase_set_timeout(products, 0);
  tcase_add_loop_test(products, product_is_right, 0, SIZES);
  tcase_add_loop_test(products, bits_do_not_depend_on_threads_or_alignment, 0, SIZES);
  tcase_add_test(products, serial_product_is_one_result);
  tcase_add_test(products, without_terms_c_is_scaled);
  tcase_add_test(products, library_has_a_name);
  tcase_add_test(products, wrong_threads_are_refused);
  suite_add_tcase(suite, products);
  return run_suite(suite);
}
