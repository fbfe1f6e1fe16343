#include "core/gemm.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include <cblas.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#ifdef HAVE_DNNL
#include <dnnl.h>
#endif

#include "core/parallel.h"

/* OpenBLAS alone has these; another CBLAS leaves them NULL. */
extern void openblas_set_num_threads(int threads) __attribute__((weak));
extern char *openblas_get_config(void) __attribute__((weak));
extern char *openblas_get_corename(void) __attribute__((weak));

typedef struct product {
  char transpose_a, transpose_b;
  int64_t m, n, k, lda, ldb, ldc;
  double alpha, beta;
  const void *a, *b;
  void *c;
} product;

typedef struct number_type {
  size_t size;
  void (*multiply)(const product *p);                                           /* in the calling thread */
  void (*add)(int64_t m, int64_t n, const void *partial, void *c, int64_t ldc); /* c (m,n) += partial */
} number_type;

/* ---- One product in one thread ------------------------------------------------------------------------------------ */

static void stop_blas_threads(void) {
  if (openblas_set_num_threads) openblas_set_num_threads(1);
}

static void prepare_blas(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, stop_blas_threads);
}

static CBLAS_TRANSPOSE cblas_transpose(char transpose) {
  return transpose == 'N' ? CblasNoTrans : CblasTrans;
}

static void multiply_f32_cblas(const product *p) {
  prepare_blas();
  cblas_sgemm(CblasRowMajor, cblas_transpose(p->transpose_a), cblas_transpose(p->transpose_b), (int)p->m, (int)p->n,
              (int)p->k, (float)p->alpha, p->a, (int)p->lda, p->b, (int)p->ldb, (float)p->beta, p->c, (int)p->ldc);
}

#ifdef HAVE_DNNL
/* oneDNN uses one thread inside an active parallel region, and elsewhere as many as OpenMP allows. With k = 0 it does
 * nothing, where the product is beta C. */
static void multiply_f32(const product *p) {
  if (p->k < 1) {
    multiply_f32_cblas(p);
    return;
  }
  const int threads = omp_get_max_threads();
  const int alone = !omp_in_parallel() && threads > 1;
  if (alone) omp_set_num_threads(1);
  const dnnl_status_t status = dnnl_sgemm(p->transpose_a, p->transpose_b, p->m, p->n, p->k, (float)p->alpha, p->a,
                                          p->lda, p->b, p->ldb, (float)p->beta, p->c, p->ldc);
  if (alone) omp_set_num_threads(threads);
  if (status != dnnl_success) multiply_f32_cblas(p); /* no memory for its copies, which come before it writes C */
}
#else
#define multiply_f32 multiply_f32_cblas
#endif

static void multiply_f64(const product *p) {
  prepare_blas();
  cblas_dgemm(CblasRowMajor, cblas_transpose(p->transpose_a), cblas_transpose(p->transpose_b), (int)p->m, (int)p->n,
              (int)p->k, p->alpha, p->a, (int)p->lda, p->b, (int)p->ldb, p->beta, p->c, (int)p->ldc);
}

static void add_f32(int64_t m, int64_t n, const void *partial, void *c, int64_t ldc) {
  const float *from = partial;
  float *to = c;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) to[i * ldc + j] += from[i * n + j];
}

static void add_f64(int64_t m, int64_t n, const void *partial, void *c, int64_t ldc) {
  const double *from = partial;
  double *to = c;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) to[i * ldc + j] += from[i * n + j];
}

static const number_type f32 = {sizeof(float), multiply_f32, add_f32};
static const number_type f64 = {sizeof(double), multiply_f64, add_f64};

/* ---- Tiles -------------------------------------------------------------------------------------------------------- */

/* Measured with oneDNN 2.6 on one AVX-512 core: a call reaches about 80 % of its best rate at 128 x 128 and all of it at
 * 256 x 512; operands narrower than 64 cost as if they had 64 rows, and each call some microseconds. */
enum {
  TILES = 32,            /* wanted, so that threads stay busy to the end */
  TILE_AREA = 128 * 128, /* the least */
  WIDE_AREA = 256 * 512, /* the most */
  TILE_WORK = 1 << 20,   /* multiply-adds, the least */
  NARROW = 64,
  DEPTH = 512,             /* the least along k */
  DEPTH_TILES = 8,         /* wanted when k is cut */
  PARTIAL_BYTES = 1 << 18, /* all partial sums, on the stack: an allocation that fails would change the result */
  STEP = 128,              /* along k, for a transposed A, see multiply_in_steps */
  UNIT = 16,               /* tiles start at multiples of a vector */
};

typedef struct tiling {
  int64_t rows, columns, depths; /* tiles along m, n and k */
} tiling;

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static tiling choose_tiling(int64_t m, int64_t n, int64_t k, size_t size) {
  const int64_t partial = PARTIAL_BYTES / (int64_t)size;
  tiling t = {1, 1, 1};
  for (;;) {
    const int64_t height = larger(m / t.rows, NARROW), width = larger(n / t.columns, NARROW);
    const int64_t area = height * width, tiles = t.rows * t.columns;
    const double work = (double)larger(m / t.rows, UNIT) * (double)larger(n / t.columns, UNIT) * (double)k;
    if (area < 2 * TILE_AREA || work < 2 * TILE_WORK || (tiles >= TILES && area <= WIDE_AREA)) break;
    if (height >= width)
      t.rows *= 2;
    else
      t.columns *= 2;
  }
  /* few tiles and a long k (the gradient of a small weight): partial sums over blocks of k */
  const int64_t tiles = t.rows * t.columns;
  while (tiles * t.depths < DEPTH_TILES && k / (2 * t.depths) >= DEPTH && m * n * (2 * t.depths - 1) <= partial)
    t.depths *= 2;
  return t;
}

/* First of `count` rows or columns in block `block`. */
static int64_t start(int64_t count, int64_t blocks, int64_t block) {
  return smaller(count, UNIT * comba_block_start((count + UNIT - 1) / UNIT, blocks, block));
}

static product tile_of(const product *whole, size_t size, const tiling *t, int64_t row, int64_t column, int64_t depth,
                       char *partial) {
  const int64_t i = start(whole->m, t->rows, row), j = start(whole->n, t->columns, column);
  const int64_t l = start(whole->k, t->depths, depth);
  product p = *whole;
  p.m = start(whole->m, t->rows, row + 1) - i;
  p.n = start(whole->n, t->columns, column + 1) - j;
  p.k = start(whole->k, t->depths, depth + 1) - l;
  p.a = (const char *)whole->a + (size_t)(p.transpose_a == 'N' ? i * p.lda + l : l * p.lda + i) * size;
  p.b = (const char *)whole->b + (size_t)(p.transpose_b == 'N' ? l * p.ldb + j : j * p.ldb + l) * size;
  if (depth == 0) {
    p.c = (char *)whole->c + (size_t)(i * p.ldc + j) * size;
  } else {
    p.c = partial + (size_t)(((depth - 1) * whole->m + i) * whole->n + j) * size;
    p.ldc = whole->n;
    p.beta = 0;
  }
  return p;
}

/* The libraries copy A by columns; where A is transposed and its rows are a power of two long, the lines that they touch
 * share few cache sets, and a short k keeps them there. */
static void multiply_in_steps(const number_type *type, const product *tile) {
  product p = *tile;
  const int64_t step = p.transpose_a == 'N' ? larger(tile->k, 1) : STEP;
  for (int64_t l = 0; l == 0 || l < tile->k; l += step) {
    p.k = smaller(step, tile->k - l);
    type->multiply(&p);
    p.a = (const char *)p.a + (size_t)(step * p.lda) * type->size;
    p.b = (const char *)p.b + (size_t)(p.transpose_b == 'N' ? step * p.ldb : step) * type->size;
    p.beta = 1;
  }
}

static void multiply_tiles(const number_type *type, const product *whole, const tiling *t, char *partial) {
#pragma omp parallel for collapse(3) schedule(dynamic) if (t->rows * t->columns * t->depths > 1)
  for (int64_t depth = 0; depth < t->depths; depth++)
    for (int64_t row = 0; row < t->rows; row++)
      for (int64_t column = 0; column < t->columns; column++) {
        const product tile = tile_of(whole, type->size, t, row, column, depth, partial);
        multiply_in_steps(type, &tile);
      }
}

/* The first block of k goes to C, the others to partial sums (depths - 1, m, n). */
static void multiply_and_add(const number_type *type, const product *whole, const tiling *t) {
  _Alignas(64) char partial[PARTIAL_BYTES];
  multiply_tiles(type, whole, t, partial);
  const size_t bytes = (size_t)(whole->m * whole->n) * type->size;
  for (int64_t depth = 1; depth < t->depths; depth++)
    type->add(whole->m, whole->n, partial + (size_t)(depth - 1) * bytes, whole->c, whole->ldc);
}

static void multiply(const number_type *type, const product *whole) {
  if (whole->m < 1 || whole->n < 1) return;
  const tiling t = choose_tiling(whole->m, whole->n, whole->k, type->size);
  if (t.depths == 1)
    multiply_tiles(type, whole, &t, NULL);
  else
    multiply_and_add(type, whole, &t);
}

/* ---- The four entry points ---------------------------------------------------------------------------------------- */

void comba_gemm_f32(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                    int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  multiply(&f32, &(product){transpose_a, transpose_b, m, n, k, lda, ldb, ldc, alpha, beta, a, b, c});
}

void comba_gemm_f64(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                    int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc) {
  multiply(&f64, &(product){transpose_a, transpose_b, m, n, k, lda, ldb, ldc, alpha, beta, a, b, c});
}

void comba_gemm_serial_f32(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                           const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                           int64_t ldc) {
  multiply_f32(&(product){transpose_a, transpose_b, m, n, k, lda, ldb, ldc, alpha, beta, a, b, c});
}

void comba_gemm_serial_f64(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
                           const double *a, int64_t lda, const double *b, int64_t ldb, double beta, double *c,
                           int64_t ldc) {
  multiply_f64(&(product){transpose_a, transpose_b, m, n, k, lda, ldb, ldc, alpha, beta, a, b, c});
}

/* ---- Name --------------------------------------------------------------------------------------------------------- */

static char library[96];

#ifdef HAVE_DNNL
static const char *isa_name(dnnl_cpu_isa_t isa) {
  switch ((int)isa) {
  case dnnl_cpu_isa_sse41: return "SSE4.1";
  case dnnl_cpu_isa_avx: return "AVX";
  case dnnl_cpu_isa_avx2: return "AVX2";
  case dnnl_cpu_isa_avx512_core: return "AVX-512";
  case dnnl_cpu_isa_avx512_core_vnni: return "AVX-512 VNNI";
  case dnnl_cpu_isa_avx512_core_bf16: return "AVX-512 BF16";
  case dnnl_cpu_isa_avx512_core_amx: return "AVX-512 AMX";
  }
  return "kernel unknown";
}

static void name_library(void) {
  const dnnl_version_t *version = dnnl_version();
  snprintf(library, sizeof library, "oneDNN %d.%d.%d (%s)", version->major, version->minor, version->patch,
           isa_name(dnnl_get_effective_cpu_isa()));
}
#else
static void name_library(void) {
  if (!openblas_get_config || !openblas_get_corename)
    snprintf(library, sizeof library, "CBLAS (kernel unknown)");
  else /* the configuration starts with "OpenBLAS 0.3.21 " */
    snprintf(library, sizeof library, "%.15s (%s)", openblas_get_config(), openblas_get_corename());
}
#endif

const char *comba_gemm_library(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, name_library);
  return library;
}
