/* One tile of C stays in registers over all of k: rows of B are vectors, numbers of A are broadcast, and a transposed A is a
 * matter of strides. A triangle costs half: a tile of a triangular A takes its part of k alone. For B transposed the roles change:
 * C^T (n,m) = B A^T, with A^T packed BLOCK tokens wide and C^T turned back BLOCK rows at a time, which moves less than turning B
 * would. */
#include "scan/chunk_product.h"

#include "core/gemm.h"
#include "core/vector.h"
#include "scan/scan.h"

#if COMBA_VECTORS

enum { PACKED_DEPTH = 512 };

typedef enum triangle { WHOLE, LOWER, UPPER } triangle;

/* The left operand: number (i,r) at row i, step r. In a triangle (LOWER: 0 for r > i) tiles leave out what is 0 in all rows. */
typedef struct left_matrix {
  const real *at;
  int64_t row, step;
  triangle part;
} left_matrix;

/* Rows from i on. rows (at most TILE_ROWS) and vectors (at most 2) are constants where this is inlined. */
static inline __attribute__((always_inline)) void tile(int64_t i0, int rows, int vectors, int64_t k, left_matrix a,
                                                       const real *b, int64_t ldb, real alpha, real beta, real *c,
                                                       int64_t ldc) {
  vector sum[TILE_ROWS][2] = {0};
  const int64_t end = a.part == LOWER && i0 + rows < k ? i0 + rows : k;
  a.at += i0 * a.row;
  c += i0 * ldc;
  for (int64_t r = a.part == UPPER ? i0 : 0; r < end; r++) {
    const real *const right = b + r * ldb, *const left = a.at + r * a.step;
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; v++) sum[i][v] += left[i * a.row] * *(const vector *)(right + v * LANES);
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
      vector *const to = (vector *)(c + i * ldc + v * LANES);
      *to = beta == 0 ? alpha * sum[i][v] : beta * *to + alpha * sum[i][v];
    }
}

/* `vectors` columns of vectors. */
static inline __attribute__((always_inline)) void panel(int vectors, int64_t m, int64_t k, left_matrix a, const real *b,
                                                        int64_t ldb, real alpha, real beta, real *c, int64_t ldc) {
  int64_t i = 0;
  for (; i + TILE_ROWS <= m; i += TILE_ROWS) tile(i, TILE_ROWS, vectors, k, a, b, ldb, alpha, beta, c, ldc);
  for (; i + 2 <= m; i += 2) tile(i, 2, vectors, k, a, b, ldb, alpha, beta, c, ldc);
  if (i < m) tile(i, 1, vectors, k, a, b, ldb, alpha, beta, c, ldc);
}

/* Columns too few for a vector, filled up with zeros. */
static void narrow(int64_t m, int64_t n, int64_t k, left_matrix a, const real *b, int64_t ldb, real alpha, real beta,
                   real *c, int64_t ldc) {
  real right[PACKED_DEPTH * LANES], sum[CHUNK * LANES];
  for (int64_t r = 0; r < k; r++)
    for (int64_t j = 0; j < LANES; j++) right[r * LANES + j] = j < n ? b[r * ldb + j] : 0;
  for (int64_t start = 0; start < m; start += CHUNK, a.at += CHUNK * a.row) {
    const int64_t rows = m - start < CHUNK ? m - start : CHUNK;
    panel(1, rows, k, a, right, LANES, 1, 0, sum, LANES);
    for (int64_t i = 0; i < rows; i++) {
      real *const to = c + (start + i) * ldc;
      for (int64_t j = 0; j < n; j++) to[j] = (beta == 0 ? 0 : beta * to[j]) + alpha * sum[i * LANES + j];
    }
  }
}

static void multiply(int64_t m, int64_t n, int64_t k, left_matrix a, const real *b, int64_t ldb, real alpha, real beta,
                     real *c, int64_t ldc) {
  int64_t j = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES) panel(2, m, k, a, b + j, ldb, alpha, beta, c + j, ldc);
  for (; j + LANES <= n; j += LANES) panel(1, m, k, a, b + j, ldb, alpha, beta, c + j, ldc);
  if (j < n) narrow(m, n - j, k, a, b + j, ldb, alpha, beta, c + j, ldc);
}

/* Exchanges, for each bit of a lane's number, the lanes of the rows whose numbers differ in that bit. */
static inline __attribute__((always_inline)) void transpose_lanes(vector rows[LANES]) {
#pragma GCC unroll 4
  for (int bit = 1; bit < LANES; bit *= 2) {
    index_vector low, high;
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++) {
      low[lane] = lane & bit ? LANES + lane - bit : lane;
      high[lane] = lane & bit ? LANES + lane : lane + bit;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
      if (i & bit) continue;
      const vector a = rows[i], b = rows[i + bit];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + bit] = __builtin_shuffle(a, b, high);
    }
  }
}

/* to (columns,stride) = from (rows,columns)^T, zeros from `rows` on; stride a multiple of LANES */
static void transpose(int64_t rows, int64_t columns, const real *from, int64_t from_stride, real *to, int64_t stride) {
  vector block[LANES];
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES)
    for (int64_t i = 0; i < stride; i += LANES) {
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; lane++)
        block[lane] = i + lane < rows ? *(const vector *)(from + (i + lane) * from_stride + c) : (vector){0};
      transpose_lanes(block);
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; lane++) *(vector *)(to + (c + lane) * stride + i) = block[lane];
    }
  for (; c < columns; c++)
    for (int64_t i = 0; i < stride; i++) to[c * stride + i] = i < rows ? from[i * from_stride + c] : 0;
}

/* LANES columns of C (m,LANES) = alpha turned^T + beta C, turned (LANES,BLOCK) */
static void unpack(int64_t m, const real *turned, real alpha, real beta, real *c, int64_t ldc) {
  vector rows[LANES];
  for (int64_t i = 0; i < m; i += LANES) {
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++) rows[lane] = *(const vector *)(turned + lane * BLOCK + i);
    transpose_lanes(rows);
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++) {
      if (i + lane >= m) break;
      vector *const to = (vector *)(c + (i + lane) * ldc);
      *to = beta == 0 ? alpha * rows[lane] : beta * *to + alpha * rows[lane];
    }
  }
}

/* C (m,n) = alpha A B^T + beta C, m at most BLOCK */
static void multiply_transposed(int64_t m, int64_t n, int64_t k, const real *a, int64_t lda, const real *b, int64_t ldb,
                                real alpha, real beta, real *c, int64_t ldc) {
  real packed[PACKED_DEPTH * BLOCK], turned[LANES * BLOCK];
  transpose(m, k, a, lda, packed, BLOCK);
  for (int64_t j = 0; j < n; j += LANES) {
    const int64_t rows = n - j < LANES ? n - j : LANES;
    multiply(rows, BLOCK, k, (left_matrix){b + j * ldb, ldb, 1, WHOLE}, packed, BLOCK, 1, 0, turned, BLOCK);
    if (rows == LANES) {
      unpack(m, turned, alpha, beta, c + j, ldc);
      continue;
    }
    for (int64_t i = 0; i < m; i++)
      for (int64_t l = 0; l < rows; l++)
        c[i * ldc + j + l] = (beta == 0 ? 0 : beta * c[i * ldc + j + l]) + alpha * turned[l * BLOCK + i];
  }
}

static left_matrix left_of(char transpose_a, const real *a, int64_t lda, triangle part) {
  return transpose_a == 'T' ? (left_matrix){a, 1, lda, part} : (left_matrix){a, lda, 1, part};
}

static bool multiply_here(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, real alpha,
                          const real *a, int64_t lda, const real *b, int64_t ldb, real beta, real *c, int64_t ldc) {
  if (k > PACKED_DEPTH) return false;
  if (transpose_b == 'T') {
    if (transpose_a == 'T' || m > BLOCK) return false;
    multiply_transposed(m, n, k, a, lda, b, ldb, alpha, beta, c, ldc);
    return true;
  }
  if (transpose_a == 'T' && m > BLOCK && k > 2 * CHUNK) return false;
  multiply(m, n, k, left_of(transpose_a, a, lda, WHOLE), b, ldb, alpha, beta, c, ldc);
  return true;
}

void COMBA_VARIANT(comba_chunk_triangle_product)(char transpose_a, int64_t n, int64_t columns, real alpha,
                                                 const real *a, int64_t lda, const real *b, int64_t ldb, real beta,
                                                 real *c, int64_t ldc) {
  const left_matrix left = left_of(transpose_a, a, lda, transpose_a == 'T' ? UPPER : LOWER);
  multiply(n, columns, n, left, b, ldb, alpha, beta, c, ldc);
}

#else

#define multiply_here(...) false

static void transpose(int64_t rows, int64_t columns, const real *from, int64_t from_stride, real *to, int64_t stride) {
  for (int64_t c = 0; c < columns; c++)
    for (int64_t i = 0; i < stride; i++) to[c * stride + i] = i < rows ? from[i * from_stride + c] : 0;
}

void COMBA_VARIANT(comba_chunk_triangle_product)(char transpose_a, int64_t n, int64_t columns, real alpha,
                                                 const real *a, int64_t lda, const real *b, int64_t ldb, real beta,
                                                 real *c, int64_t ldc) {
  comba_gemm_serial(transpose_a, 'N', n, columns, n, alpha, a, lda, b, ldb, beta, c, ldc);
}

#endif

void COMBA_VARIANT(comba_chunk_transpose)(int64_t rows, int64_t columns, const real *from, int64_t from_stride,
                                          real *to, int64_t stride) {
  transpose(rows, columns, from, from_stride, to, stride);
}

void COMBA_VARIANT(comba_chunk_product)(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, real alpha,
                                        const real *a, int64_t lda, const real *b, int64_t ldb, real beta, real *c,
                                        int64_t ldc) {
  if (!multiply_here(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc))
    comba_gemm_serial(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
