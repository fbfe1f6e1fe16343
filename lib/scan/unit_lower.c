/* The inverse of a unit lower triangular matrix of one chunk. */
#include "scan/chunk_product.h"
#include "scan/scan.h"

/* One block on the diagonal. Row j, once final, is taken from all rows below it: the block stays in vector registers. */
static void invert_block(const real *L, real *inverse) {
  real rows[BLOCK][BLOCK] = {{0}};
  for (int i = 0; i < BLOCK; i++) rows[i][i] = 1;
#pragma GCC unroll 16
  for (int j = 0; j < BLOCK; j++)
#pragma GCC unroll 16
    for (int i = j + 1; i < BLOCK; i++)
      for (int c = 0; c < BLOCK; c++) rows[i][c] -= L[i * CHUNK + j] * rows[j][c];
  for (int i = 0; i < BLOCK; i++) memcpy(inverse + i * CHUNK, rows[i], sizeof rows[i]);
}

/* Blocks of 16 on the diagonal by substitution, then pairs of
 * inverted blocks become one of twice the size: [[A,0],[M,D]]^{-1} = [[A^{-1},0],[-D^{-1} M A^{-1}, D^{-1}]]. Squaring powers
 * of L would be shorter, and loses all digits where keys repeat. */
void COMBA_VARIANT(comba_unit_lower_inverse)(int64_t n, const real *L, real *inverse, real *product) {
  memset(inverse, 0, CHUNK * CHUNK * sizeof(real));
  for (int64_t block = 0; block < n; block += BLOCK)
    invert_block(L + block * CHUNK + block, inverse + block * CHUNK + block);
  for (int64_t side = BLOCK; side < n; side *= 2)
    for (int64_t block = 0; block + side < n; block += 2 * side) {
      const int64_t corner = (block + side) * CHUNK + block;
      chunk_product('N', 'N', side, side, side, 1, L + corner, CHUNK, inverse + block * CHUNK + block, CHUNK, 0,
                    product, CHUNK);
      chunk_triangle_product('N', side, side, -1, inverse + corner + side, CHUNK, product, CHUNK, 0, inverse + corner,
                             CHUNK);
    }
}
