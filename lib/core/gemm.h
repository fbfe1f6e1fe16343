/* Matrix products: float32 by oneDNN (else CBLAS), double by CBLAS.
 *
 * C (m,n) = alpha op(A) op(B) + beta C, row-major, op(A) (m,k), op(B) (k,n); transpose is 'N' or 'T', a leading dimension
 * is the row length of the matrix as stored. beta = 0 overwrites C whatever it held.
 *
 * comba_gemm runs tiles of C, whose shape depends on (m,n,k) alone, over all threads; comba_gemm_serial computes the
 * whole product in the calling thread and must be called from inside an OpenMP parallel region. So results are the same
 * bits for every number of threads. */
#ifndef COMBA_CORE_GEMM_H
#define COMBA_CORE_GEMM_H

#include <stdint.h>

void comba_gemm_f32(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                    int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void comba_gemm_f64(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                    int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc);
void comba_gemm_serial_f32(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                           const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void comba_gemm_serial_f64(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
                           const double *a, int64_t lda, const double *b, int64_t ldb, double beta, double *c,
                           int64_t ldc);

/* "oneDNN 2.6.3 (AVX-512)" or "OpenBLAS (SkylakeX)", for `info` and the bench. */
const char *comba_gemm_library(void);

#ifdef COMBA_REAL_DOUBLE
#define comba_gemm comba_gemm_f64
#define comba_gemm_serial comba_gemm_serial_f64
#else
#define comba_gemm comba_gemm_f32
#define comba_gemm_serial comba_gemm_serial_f32
#endif

#endif
