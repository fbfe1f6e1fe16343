/* Matrix products with a side of at most BLOCK tokens, for which a general product spends more on its calls and copies than
 * on the arithmetic. */
#ifndef COMBA_SCAN_CHUNK_PRODUCT_H
#define COMBA_SCAN_CHUNK_PRODUCT_H

#include "core/real.h"

/* C (m,n) = alpha op(A) op(B) + beta C, row-major, in the calling thread, as comba_gemm_serial, which it calls for other sizes. */
void COMBA_VARIANT(comba_chunk_product)(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, real alpha,
                                        const real *a, int64_t lda, const real *b, int64_t ldb, real beta, real *c,
                                        int64_t ldc);

#define chunk_product COMBA_VARIANT(comba_chunk_product)

#endif
