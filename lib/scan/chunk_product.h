/* Matrix products of a chunk, for which a general product spends more on its calls and copies than on the arithmetic: with a
 * side of at most BLOCK tokens, or without a transposed B. All are row-major and run in the calling thread. */
#ifndef COMBA_SCAN_CHUNK_PRODUCT_H
#define COMBA_SCAN_CHUNK_PRODUCT_H

#include "core/real.h"

/* C (m,n) = alpha op(A) op(B) + beta C, as comba_gemm_serial, which it calls for other sizes. */
void COMBA_VARIANT(comba_chunk_product)(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, real alpha,
                                        const real *a, int64_t lda, const real *b, int64_t ldb, real beta, real *c,
                                        int64_t ldc);

/* The same with A (n,n) lower triangular, n at most CHUNK, and B (n,columns); above the diagonal A holds zeros. */
void COMBA_VARIANT(comba_chunk_triangle_product)(char transpose_a, int64_t n, int64_t columns, real alpha,
                                                 const real *a, int64_t lda, const real *b, int64_t ldb, real beta,
                                                 real *c, int64_t ldc);

/* to (columns,stride) = from (rows,columns)^T, with zeros from `rows` on; stride a multiple of BLOCK */
void COMBA_VARIANT(comba_chunk_transpose)(int64_t rows, int64_t columns, const real *from, int64_t from_stride,
                                          real *to, int64_t stride);

#define chunk_product COMBA_VARIANT(comba_chunk_product)
#define chunk_triangle_product COMBA_VARIANT(comba_chunk_triangle_product)
#define chunk_transpose COMBA_VARIANT(comba_chunk_transpose)

#endif
