/* The ground that everything stands on: messages, shapes, random numbers, the exponential, matrix products, threads. */
#include <float.h>
#include <omp.h>
#include <string.h>

#include "core/device_failure.h"
#include "core/gemm.h"
#include "core/op.h"
#include "core/parallel.h"
#include "op_instance.h"
#include "testing.h"

/* ---- Messages ------------------------------------------------------------------------------------------------------ */

START_TEST(failure_keeps_its_message) {
  ck_assert_int_eq(comba_fail(COMBA_ERROR_FORMAT, "field '%s' is %d", "rank", 7), COMBA_ERROR_FORMAT);
  ck_assert_str_eq(comba_last_error(), "field 'rank' is 7");
  ck_assert_int_eq(comba_fail_in(COMBA_ERROR_IO, "%s", "config.json"), COMBA_ERROR_IO);
  ck_assert_str_eq(comba_last_error(), "config.json: field 'rank' is 7");
}
END_TEST

START_TEST(long_message_is_cut) {
  char text[5000];
  memset(text, 'x', sizeof text - 1);
  text[sizeof text - 1] = 0;
  comba_fail(COMBA_ERROR_ARGUMENT, "%s", text);
  ck_assert_uint_gt(strlen(comba_last_error()), 500);
  comba_fail_in(COMBA_ERROR_ARGUMENT, "%s", text);
  comba_fail_in(COMBA_ERROR_ARGUMENT, "start");
  ck_assert_uint_lt(strlen(comba_last_error()), sizeof text);
  ck_assert_int_eq(strncmp(comba_last_error(), "start: xxx", 10), 0);
}
END_TEST

/* What a GPU's runtime reports becomes what was wrong and what to do. */
START_TEST(failure_of_a_device_names_its_remedy) {
  static const struct {
    comba_device_failure failure;
    comba_status status;
    const char *parts[4];
  } cases[] = {
      {{.code = COMBA_CUDA_OUT_OF_MEMORY,
        .what = "the arena of a graph",
        .device = "NVIDIA H100",
        .asked = (size_t)41 << 30,
        .available = (size_t)1 << 29},
       COMBA_ERROR_MEMORY,
       {"NVIDIA H100: 41.000 GiB for the arena of a graph", "0.500 GiB are free", "--recompute block", "--batch-size"}},
      {{.code = COMBA_CUDA_OUT_OF_MEMORY, .what = "a stream and cuBLASLt", .device = "NVIDIA H100"},
       COMBA_ERROR_MEMORY,
       {"NVIDIA H100 at a stream and cuBLASLt, 0.000 GiB are free", "nvidia-smi"}},
      {{.code = COMBA_CUDA_OLD_DRIVER, .driver = 12040, .runtime = 13000},
       COMBA_ERROR_UNSUPPORTED,
       {"is for CUDA 12.4, expected 13.0", "update the driver", "--device cpu"}},
      {{.code = COMBA_CUDA_OLD_DRIVER, .runtime = 13000},
       COMBA_ERROR_UNSUPPORTED,
       {"no NVIDIA driver", "--device cpu"}},
      {{.code = COMBA_CUDA_STUB_LIBRARY}, COMBA_ERROR_UNSUPPORTED, {"no NVIDIA driver"}},
      {{.code = COMBA_CUDA_NO_DEVICE}, COMBA_ERROR_UNSUPPORTED, {"no GPU was found", "--device cpu"}},
      {{.code = COMBA_CUDA_NO_KERNEL_IMAGE, .device = "NVIDIA B200"},
       COMBA_ERROR_UNSUPPORTED,
       {"NVIDIA B200 is of a kind", "--with-cuda-architectures"}},
      {{.code = COMBA_CUDA_DEVICE_IN_USE}, COMBA_ERROR_DEVICE, {"another process"}},
      {{.code = COMBA_CUDA_DRIVER_MISMATCH}, COMBA_ERROR_DEVICE, {"restart"}},
      {{.code = COMBA_CUDA_MEMORY_ERROR, .what = "replaying a step", .device = "NVIDIA H200"},
       COMBA_ERROR_DEVICE,
       {"NVIDIA H200 was lost at replaying a step", "--resume"}},
      {{.code = COMBA_CUDA_ILLEGAL_ADDRESS, .what = "linear"}, COMBA_ERROR_DEVICE, {"at linear", "--resume"}},
      {{.code = 1, .what = "a copy to the GPU"}, COMBA_ERROR_DEVICE, {"CUDA: a copy to the GPU"}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    comba_device_failure failure = cases[i].failure;
    failure.text = "in its own words";
    ck_assert_int_eq(comba_device_fail(&failure), cases[i].status);
    for (int k = 0; k < 4 && cases[i].parts[k]; k++)
      ck_assert_msg(strstr(comba_last_error(), cases[i].parts[k]), "code %d: '%s' lacks '%s'", failure.code,
                    comba_last_error(), cases[i].parts[k]);
  }
}
END_TEST

START_TEST(every_status_has_a_name) {
  for (int status = COMBA_OK; status <= COMBA_ERROR_NONFINITE; status++) {
    ck_assert_str_ne(comba_status_name((comba_status)status), "unknown status");
    for (int other = 0; other < status; other++)
      ck_assert_str_ne(comba_status_name((comba_status)status), comba_status_name((comba_status)other));
  }
  ck_assert_str_eq(comba_status_name((comba_status)99), "unknown status");
}
END_TEST

START_TEST(memory_is_aligned_zeroed_or_refused) {
  for (size_t size = 0; size < 300; size += 37) {
    unsigned char *memory = comba_allocate(size, "a test");
    ck_assert_ptr_nonnull(memory);
    ck_assert_uint_eq((uintptr_t)memory % 64, 0);
    for (size_t i = 0; i < size; i++) ck_assert_uint_eq(memory[i], 0);
    free(memory);
  }
  ck_assert_ptr_null(comba_allocate(SIZE_MAX - 8, "the moon"));
  ck_assert_ptr_nonnull(strstr(comba_last_error(), "the moon"));
}
END_TEST

/* ---- Shapes -------------------------------------------------------------------------------------------------------- */

START_TEST(shape_counts_and_compares) {
  const comba_shape absent = {0}, empty = COMBA_SHAPE(3, 0, INT64_MAX, 8), full = COMBA_SHAPE(2, 3, 4, 5, 6);
  const comba_shape vast = COMBA_SHAPE(INT64_MAX, 2), negative = COMBA_SHAPE(3, -1);
  ck_assert_int_eq(comba_shape_elements(&absent), 0);
  ck_assert_int_eq(comba_shape_elements(&empty), 0);
  ck_assert_int_eq(comba_shape_elements(&full), 720);
  ck_assert_int_eq(comba_shape_elements(&vast), -1);
  ck_assert_int_eq(comba_shape_elements(&negative), -1);
  ck_assert(comba_shape_equal(&full, &COMBA_SHAPE(2, 3, 4, 5, 6)));
  ck_assert(!comba_shape_equal(&full, &COMBA_SHAPE(2, 3, 4, 5)));
  ck_assert(!comba_shape_equal(&full, &COMBA_SHAPE(2, 3, 4, 5, 7)));
}
END_TEST

START_TEST(shape_prints) {
  char text[COMBA_SHAPE_TEXT];
  ck_assert_str_eq(comba_shape_text(&COMBA_SHAPE(2, 64, 3), text), "(2, 64, 3)");
  ck_assert_str_eq(comba_shape_text(&COMBA_SHAPE(7), text), "(7)");
  const comba_shape longest = COMBA_SHAPE(INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN);
  comba_shape_text(&longest, text);
  ck_assert_int_eq(text[strlen(text) - 1], ')');
}
END_TEST

/* ---- Random numbers ------------------------------------------------------------------------------------------------ */

/* Known answers of philox4x32 with 10 rounds, from the Random123 distribution (kat_vectors). */
START_TEST(philox_gives_the_known_answers) {
  static const struct {
    uint32_t counter[4], key[2], answer[4];
  } known[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  const uint64_t seed = (uint64_t)known[_i].key[1] << 32 | known[_i].key[0];
  const uint64_t counter = (uint64_t)known[_i].counter[1] << 32 | known[_i].counter[0];
  const uint64_t stream = (uint64_t)known[_i].counter[3] << 32 | known[_i].counter[2];
  const comba_random4 bits = comba_random_bits(seed, stream, counter);
  for (int i = 0; i < 4; i++) ck_assert_uint_eq(bits.value[i], known[_i].answer[i]);
}
END_TEST

START_TEST(stream_of_a_name_is_fnv1a) {
  ck_assert_uint_eq(comba_random_stream(""), 0xcbf29ce484222325u);
  ck_assert_uint_eq(comba_random_stream("a"), 0xaf63dc4c8601ec8cu);
  ck_assert_uint_eq(comba_random_stream("foobar"), 0x85944171f73967e8u);
}
END_TEST

START_TEST(moments_are_those_of_the_distribution) {
  enum { N = 200000 };
  double uniform[4] = {0}, normal[4] = {0};
  for (uint64_t i = 0; i < N; i++) {
    const double u = comba_random_uniform(5, 9, i), z = comba_random_normal(5, 9, i);
    ck_assert(u > 0 && u < 1 && isfinite(z));
    for (int p = 0; p < 4; p++) {
      uniform[p] += pow(u, p + 1) / N;
      normal[p] += pow(z, p + 1) / N;
    }
  }
  static const double normal_moment[] = {0, 1, 0, 3};
  for (int p = 0; p < 4; p++) {
    ck_assert_double_eq_tol(uniform[p], 1.0 / (p + 2), 0.005);
    ck_assert_double_eq_tol(normal[p], normal_moment[p], 0.05);
  }
}
END_TEST

START_TEST(integers_fall_evenly) {
  enum { N = 70000, FACES = 7 };
  int count[FACES] = {0};
  for (uint64_t i = 0; i < N; i++) count[comba_random_below(1, 2, i, FACES)]++;
  double square = 0; /* chi-square with 6 degrees of freedom: above 22.5 once in a thousand */
  for (int i = 0; i < FACES; i++) square += pow(count[i] - N / FACES, 2) / (N / FACES);
  ck_assert_double_lt(square, 22.5);
  for (uint64_t i = 0; i < 100; i++) ck_assert_uint_eq(comba_random_below(1, 2, i, 1), 0);
}
END_TEST

START_TEST(draws_depend_on_all_that_names_them) {
  const double draw = comba_random_uniform(1, 2, 3);
  ck_assert(draw == comba_random_uniform(1, 2, 3));
  ck_assert(draw != comba_random_uniform(2, 2, 3));
  ck_assert(draw != comba_random_uniform(1, 3, 3));
  ck_assert(draw != comba_random_uniform(1, 2, 4));
  ck_assert(draw != comba_random_uniform(1, 2, 3 + ((uint64_t)1 << 40)));
}
END_TEST

/* ---- Elementary functions ------------------------------------------------------------------------------------------ */

static double ulps(float found, double expected) {
  const float rounded = (float)expected;
  return fabs((double)found - expected) / (double)(nextafterf(rounded, INFINITY) - rounded);
}

START_TEST(exp_is_within_two_ulps) {
  double worst = 0, at = 0;
  for (double x = -87; x <= 88; x += 1.7e-4) {
    const double error = ulps(comba_exp((float)x), exp((double)(float)x));
    if (error > worst) {
      worst = error;
      at = x;
    }
  }
  ck_assert_msg(worst < 2, "error of %.3g ulp at %.9g", worst, at);
  ck_assert(comba_exp(0) == 1);
}
END_TEST

START_TEST(exp_ends_in_zero_and_infinity) {
  for (float x = -87.4f; x > -110; x -= 0.37f) ck_assert_float_le(comba_exp(x), FLT_MIN);
  ck_assert(comba_exp(-105) == 0);
  ck_assert(comba_exp(-FLT_MAX) == 0);
  ck_assert(comba_exp(-INFINITY) == 0);
  ck_assert(isinf(comba_exp(88.8f)));
  ck_assert(isinf(comba_exp(FLT_MAX)));
  ck_assert(isinf(comba_exp(INFINITY)));
}
END_TEST

START_TEST(sigmoid_and_softplus_hold_everywhere) {
  for (double x = -120; x <= 120; x += 0.0137) {
    const double y = (double)(float)x, sigmoid = 1 / (1 + exp(-y)), softplus = y > 40 ? y : log1p(exp(y));
    ck_assert_double_eq_tol(comba_sigmoid((float)x), sigmoid, 3e-7 * sigmoid + 1e-38);
    ck_assert_double_eq_tol(comba_softplus((float)x), softplus, 3e-7 * softplus + 1e-38);
  }
}
END_TEST

/* ---- Matrix products ----------------------------------------------------------------------------------------------- */

typedef struct size {
  int64_t m, n, k;
} size;
/* single numbers, vectors, odd sizes, several tiles in each direction, a long sum */
static const size sizes[] = {{1, 1, 1},     {1, 40, 7},     {33, 1, 65},   {17, 31, 5},  {64, 64, 64},    {65, 130, 70},
                             {300, 70, 41}, {70, 515, 129}, {257, 258, 3}, {3, 5, 3000}, {128, 64, 1100}, {20, 30, 0}};
enum { SIZES = sizeof sizes / sizeof *sizes, PAD = 3 };

typedef struct matrix {
  int64_t rows, columns, ld; /* as stored */
  double *values;
  float *f32;
} matrix;

static matrix matrix_create(int64_t rows, int64_t columns, uint64_t stream) {
  matrix a = {rows, columns, columns + PAD, NULL, NULL};
  a.values = op_memory((size_t)(rows * a.ld) * sizeof(double));
  a.f32 = op_memory((size_t)(rows * a.ld) * sizeof(float));
  fill_normal(a.values, rows * a.ld, 1, stream);
  for (int64_t i = 0; i < rows * a.ld; i++) a.f32[i] = (float)a.values[i];
  return a;
}

static void matrix_free(matrix *a) {
  free(a->values);
  free(a->f32);
}

static double at(const matrix *a, char transpose, int64_t i, int64_t j) {
  return transpose == 'N' ? a->values[i * a->ld + j] : a->values[j * a->ld + i];
}

typedef struct product {
  char ta, tb;
  size s;
  double alpha, beta;
  matrix a, b, c; /* c before the product */
} product;

static product product_create(int index, int combination) {
  product p = {.ta = combination & 1 ? 'T' : 'N', .tb = combination & 2 ? 'T' : 'N', .s = sizes[index]};
  static const double betas[] = {0, 1, 0.5};
  p.beta = betas[combination / 4 % 3];
  p.alpha = p.beta == 0.5 ? -2 : 1;
  p.a = p.ta == 'N' ? matrix_create(p.s.m, p.s.k, 1) : matrix_create(p.s.k, p.s.m, 1);
  p.b = p.tb == 'N' ? matrix_create(p.s.k, p.s.n, 2) : matrix_create(p.s.n, p.s.k, 2);
  p.c = matrix_create(p.s.m, p.s.n, 3);
  if (p.beta == 0) /* which overwrites, whatever was there */
    for (int64_t i = 0; i < p.s.m * p.c.ld; i++) p.c.f32[i] = NAN, p.c.values[i] = NAN;
  return p;
}

static void product_free(product *p) {
  matrix_free(&p->a);
  matrix_free(&p->b);
  matrix_free(&p->c);
}

static void multiply_f32(const product *p, bool serial, float *c) {
  (serial ? comba_gemm_serial_f32 : comba_gemm_f32)(p->ta, p->tb, p->s.m, p->s.n, p->s.k, (float)p->alpha, p->a.f32,
                                                    p->a.ld, p->b.f32, p->b.ld, (float)p->beta, c, p->c.ld);
}

static void multiply_f64(const product *p, bool serial, double *c) {
  (serial ? comba_gemm_serial_f64 : comba_gemm_f64)(p->ta, p->tb, p->s.m, p->s.n, p->s.k, p->alpha, p->a.values,
                                                    p->a.ld, p->b.values, p->b.ld, p->beta, c, p->c.ld);
}

/* Compares c with the naive product, and what lies between its rows with what was there. */
static void expect_product(const product *p, const double *c, double tolerance) {
  for (int64_t i = 0; i < p->s.m; i++) {
    for (int64_t j = 0; j < p->s.n; j++) {
      double sum = 0;
      for (int64_t l = 0; l < p->s.k; l++) sum += at(&p->a, p->ta, i, l) * at(&p->b, p->tb, l, j);
      const double expected = p->alpha * sum + (p->beta == 0 ? 0 : p->beta * p->c.values[i * p->c.ld + j]);
      ck_assert_msg(fabs(c[i * p->c.ld + j] - expected) <= tolerance * sqrt((double)p->s.k + 1),
                    "(%lld, %lld, %lld) %c%c beta %g: [%lld, %lld] is %.9g, expected %.9g", (long long)p->s.m,
                    (long long)p->s.n, (long long)p->s.k, p->ta, p->tb, p->beta, (long long)i, (long long)j,
                    c[i * p->c.ld + j], expected);
    }
    for (int64_t j = p->s.n; j < p->c.ld; j++)
      ck_assert(!memcmp(&c[i * p->c.ld + j], &p->c.values[i * p->c.ld + j], sizeof *c) || isnan(c[i * p->c.ld + j]));
  }
}

START_TEST(products_equal_the_naive_ones) {
  for (int combination = 0; combination < 12; combination++) {
    product p = product_create(_i, combination);
    const int64_t count = p.s.m * p.c.ld;
    float *c32 = op_memory((size_t)count * sizeof *c32), *again = op_memory((size_t)count * sizeof *again);
    double *c64 = op_memory((size_t)count * sizeof *c64);
    for (int serial = 0; serial < 2; serial++) {
      memcpy(c32, p.c.f32, (size_t)count * sizeof *c32);
      memcpy(c64, p.c.values, (size_t)count * sizeof *c64);
#pragma omp parallel num_threads(serial ? 2 : 1) if (serial)
#pragma omp single
      {
        multiply_f32(&p, serial, c32);
        multiply_f64(&p, serial, c64);
      }
      expect_product(&p, c64, 1e-13);
      for (int64_t i = 0; i < count; i++) c64[i] = c32[i];
      expect_product(&p, c64, 1e-5);
    }
    for (int threads = 1; threads <= 3; threads += 2) {
      comba_set_threads(threads);
      float *c = threads == 1 ? again : c32;
      memcpy(c, p.c.f32, (size_t)count * sizeof *c);
      multiply_f32(&p, false, c);
    }
    ck_assert_msg(!memcmp(again, c32, (size_t)count * sizeof *c32), "the result depends on the number of threads");
    free(c32);
    free(again);
    free(c64);
    product_free(&p);
  }
}
END_TEST

START_TEST(product_library_has_a_name) {
  ck_assert_uint_gt(strlen(comba_gemm_library()), 4);
}
END_TEST

/* ---- Threads ------------------------------------------------------------------------------------------------------- */

START_TEST(threads_are_set_and_checked) {
  ck_assert_int_eq(comba_set_threads(3), COMBA_OK);
  ck_assert_int_eq(comba_threads(), 3);
  ck_assert_int_eq(comba_set_threads(-1), COMBA_ERROR_ARGUMENT);
  ck_assert_int_eq(comba_set_threads(1 << 30), COMBA_ERROR_ARGUMENT);
  ck_assert_int_eq(comba_threads(), 3);
  ck_assert_int_eq(comba_set_threads(0), COMBA_OK);
  ck_assert_int_eq(comba_threads(), omp_get_num_procs());
}
END_TEST

START_TEST(blocks_cover_every_row_once) {
  for (int64_t count = 0; count < 300; count++)
    for (int64_t minimum = 1; minimum < 80; minimum += 13) {
      const int64_t blocks = comba_blocks(count, minimum);
      ck_assert(blocks >= 1 && blocks <= COMBA_BLOCKS);
      ck_assert_int_eq(comba_block_start(count, blocks, 0), 0);
      ck_assert_int_eq(comba_block_start(count, blocks, blocks), count);
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t rows = comba_block_start(count, blocks, block + 1) - comba_block_start(count, blocks, block);
        ck_assert(rows >= (count < minimum ? count : minimum));
      }
    }
}
END_TEST

int main(void) {
  Suite *suite = suite_create("core");
  TCase *status = tcase_create("status"), *shapes = tcase_create("shapes"), *random = tcase_create("random");
  TCase *functions = tcase_create("functions"), *products = tcase_create("products"),
        *threads = tcase_create("threads");
  tcase_add_test(status, failure_keeps_its_message);
  tcase_add_test(status, long_message_is_cut);
  tcase_add_test(status, failure_of_a_device_names_its_remedy);
  tcase_add_test(status, every_status_has_a_name);
  tcase_add_test(status, memory_is_aligned_zeroed_or_refused);
  tcase_add_test(shapes, shape_counts_and_compares);
  tcase_add_test(shapes, shape_prints);
  tcase_add_loop_test(random, philox_gives_the_known_answers, 0, 3);
  tcase_add_test(random, stream_of_a_name_is_fnv1a);
  tcase_add_test(random, moments_are_those_of_the_distribution);
  tcase_add_test(random, integers_fall_evenly);
  tcase_add_test(random, draws_depend_on_all_that_names_them);
  tcase_add_test(functions, exp_is_within_two_ulps);
  tcase_add_test(functions, exp_ends_in_zero_and_infinity);
  tcase_add_test(functions, sigmoid_and_softplus_hold_everywhere);
  tcase_add_loop_test(products, products_equal_the_naive_ones, 0, SIZES);
  tcase_add_test(products, product_library_has_a_name);
  tcase_add_test(threads, threads_are_set_and_checked);
  tcase_add_test(threads, blocks_cover_every_row_once);
  TCase *all[] = {status, shapes, random, functions, products, threads};
  for (int i = 0; i < 6; i++) suite_add_tcase(suite, all[i]);
  return run_suite(suite);
}
