/* What kernels of cuda_scalar.h find of a chunk by itself: its gates, the resolvent of its feedback, and sums over paths between its
 * tokens. */
#ifndef COMBA_SCAN_CUDA_SCALAR_CHUNK_H
#define COMBA_SCAN_CUDA_SCALAR_CHUNK_H

#include "scan/cuda_scalar_private.h"
#include "scan/cuda_tile.h"

enum { MATRIX_STRIDE = tile_stride<float, CHUNK>, MATRIX_FLOATS = CHUNK * MATRIX_STRIDE }; /* in shared memory */
enum { RESOLVENT_BLOCK = 16 };                                                             /* by substitution */
enum { HALF = 32 };

/* What a warp of eight has of a (64, 64): 16 rows, 32 columns. */
static __device__ inline int warp_row() {
  return threadIdx.x / 32 % 4 * TILE_ROWS;
}
static __device__ inline int warp_column() {
  return threadIdx.x / 128 * HALF;
}

/* The first channel, in rows of `heads` heads of `width`, of what head `head` of the most reads. */
static inline __device__ int channel_of(const pass &a, int64_t head, int64_t heads, int width) {
  return (int)head / ((int)a.s.heads / (int)heads) * width;
}

/* ---- Forward -------------------------------------------------------------------------------------------------------- */

/* G and the factors of a slot, by its first warp: lane l has tokens 2 l and 2 l + 1. Tokens that are missing add nothing and have
 * beta 0. */
static __device__ inline void find_gates(const pass &a, const cuda_piece &piece, int64_t slot, int64_t head, double *G,
                                         float *beta) {
  const int lane = threadIdx.x;
  const double constant = a.c.retention ? log1p(-exp2(-(double)a.c.retention - (double)head)) : 0;
  double gate[2];
  for (int i = 0; i < 2; i++) {
    const int token = 2 * lane + i;
    const int64_t at = (piece.row + token) * a.s.heads + head;
    const bool there = token < piece.count;
    gate[i] = there ? (a.c.g ? a.c.g[at] : constant) : 0;
    beta[token] = there ? (a.s.delta ? a.c.beta[at] : 1) : 0;
  }
  double sum = gate[0] + gate[1];
  for (int offset = 1; offset < 32; offset *= 2) {
    const double before = __shfl_up_sync(~0u, sum, offset);
    if (lane >= offset) sum += before;
  }
  G[2 * lane] = sum - gate[1];
  G[2 * lane + 1] = sum;
  __syncwarp();
  float *factors = a.b.factors + slot * FACTORS * CHUNK;
  for (int i = lane; i < CHUNK; i += 32) {
    a.b.G[slot * CHUNK + i] = G[i];
    factors[READ * CHUNK + i] = feedback_decay(G, i, a.c.after_decay);
    factors[BETA * CHUNK + i] = beta[i];
    factors[LEFT * CHUNK + i] = decay(G[CHUNK - 1] - G[i]);
    factors[DECAY * CHUNK + i] = decay(G[i]);
  }
}

/* Pairs of blocks of `size` on the diagonal of R give the block below the first and beside the second:
 *   R21 = (I - R22 D2) M21 (I - D1 R11)
 * M21 (I - D1 R11) goes to R's place above the diagonal, which is free. Four columns a thread. */
template <int size> static __device__ void merge_resolvents(const float *M, const float *beta, float *R) {
  constexpr int pieces = size / 4, items = CHUNK / 2 * pieces;
  for (int round = 0; round < 2; round++) {
    for (int x = threadIdx.x; x < items; x += blockDim.x) {
      const int column = x % pieces * 4, row = x / pieces % size, first = x / pieces / size * 2 * size;
      const int second = first + size; /* the blocks' first tokens */
      /* round 0: M21 - (M21 D1) R11; round 1: that - (R22 D2) that */
      const float *start =
          round ? R + (first + row) * MATRIX_STRIDE + second : M + (second + row) * MATRIX_STRIDE + first;
      const float *left =
          round ? R + (second + row) * MATRIX_STRIDE + second : M + (second + row) * MATRIX_STRIDE + first;
      const float *right = R + first * MATRIX_STRIDE + (round ? second : first);
      const float *b = beta + (round ? second : first);
      float4 sum = *(const float4 *)(start + column);
      /* both are zero above their diagonals, where results of the smaller size lie */
      for (int m = round ? 0 : column; m < (round ? row : size); m++) {
        const float factor = left[m] * b[m];
        const float4 other = *(const float4 *)(right + m * MATRIX_STRIDE + column);
        sum.x -= factor * other.x;
        sum.y -= factor * other.y;
        sum.z -= factor * other.z;
        sum.w -= factor * other.w;
      }
      float *to = round ? R + (second + row) * MATRIX_STRIDE + first : R + (first + row) * MATRIX_STRIDE + second;
      *(float4 *)(to + column) = sum;
    }
    __syncthreads();
  }
}

/* R (CHUNK, CHUNK) below the diagonal, from M: (I + M D) R = M, first in blocks of 16, a thread a column, then blocks are merged. */
static __device__ inline void find_resolvent(const float *M, const float *beta, float *R) {
  if (threadIdx.x < CHUNK) {
    const int column = threadIdx.x, first = column / RESOLVENT_BLOCK * RESOLVENT_BLOCK;
    float scaled[RESOLVENT_BLOCK]; /* beta times the column */
#pragma unroll
    for (int i = 0; i < RESOLVENT_BLOCK; i++) {
      const float *row = M + (first + i) * MATRIX_STRIDE;
      float sum = row[column];
#pragma unroll
      for (int m = 0; m < i; m++) sum -= row[first + m] * scaled[m];
      R[(first + i) * MATRIX_STRIDE + column] = sum;
      scaled[i] = beta[first + i] * sum;
    }
  }
  __syncthreads();
  merge_resolvents<RESOLVENT_BLOCK>(M, beta, R);
  merge_resolvents<2 * RESOLVENT_BLOCK>(M, beta, R);
}

/* ---- Backward ------------------------------------------------------------------------------------------------------- */

/* Pairs of inverted blocks on the diagonal become one of twice the side:
 * [[A,0],[M,D]]^-1 = [[A^-1,0],[-D^-1 M A^-1, D^-1]]. A warp has 16 rows and 8 columns; M A^-1 takes the place of M. */
template <int side> static __device__ void merge_inverses(float *L, float *X) {
  constexpr int per_pair = side / TILE_ROWS * side / 8, jobs = CHUNK / 2 / side * per_pair;
  const int warp = threadIdx.x / 32, first = warp / per_pair * 2 * side;
  const int row = first + side + warp % per_pair / (side / 8) * TILE_ROWS, column = warp % (side / 8) * 8;
  float product[1][4] = {};
  if (warp < jobs)
    tile_multiply<8, side, false>(product, L + row * MATRIX_STRIDE + first, MATRIX_STRIDE,
                                  X + first * MATRIX_STRIDE + first + column, MATRIX_STRIDE);
  __syncthreads();
  float *M = L + (first + side) * MATRIX_STRIDE + first + column;
  if (warp < jobs) tile_write<8>(L + row * MATRIX_STRIDE + first + column, MATRIX_STRIDE, product);
  __syncthreads();
  if (warp < jobs) {
    float corner[1][4] = {};
    tile_multiply<8, side, false>(corner, X + row * MATRIX_STRIDE + first + side, MATRIX_STRIDE, M, MATRIX_STRIDE);
    for (int i = 0; i < 4; i++) corner[0][i] = -corner[0][i];
    tile_write<8>(X + row * MATRIX_STRIDE + first + column, MATRIX_STRIDE, corner);
  }
  __syncthreads();
}

/* X = (I + L)^-1 of strictly lower L, which is lost: blocks of 16 on the diagonal by substitution, a thread a column, then pairs of them.
 * The block, of eight warps, is in step before and after. */
static __device__ inline void invert(float *L, float *X) {
  for (int i = threadIdx.x; i < CHUNK * MATRIX_STRIDE; i += blockDim.x) X[i] = 0;
  __syncthreads();
  if (threadIdx.x < CHUNK) {
    const int column = threadIdx.x % TILE_ROWS, corner = threadIdx.x / TILE_ROWS * TILE_ROWS * (MATRIX_STRIDE + 1);
    float x[TILE_ROWS];
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
      float sum = i == column;
#pragma unroll
      for (int m = 0; m < i; m++) sum -= L[corner + i * MATRIX_STRIDE + m] * x[m];
      x[i] = sum;
      X[corner + i * MATRIX_STRIDE + column] = sum;
    }
  }
  __syncthreads();
  merge_inverses<16>(L, X);
  merge_inverses<32>(L, X);
}

/* f(t, the sum of paths[i][j] over j < t <= i): down the columns from below, then along the rows, which several of the block's threads
 * share. paths is lost. */
template <int threads, class F> static __device__ void sum_paths(float (*paths)[CHUNK + 1], F f) {
  constexpr int parts = threads / CHUNK, part = CHUNK / parts;
  __shared__ float sums[parts][CHUNK];
  const int j = threadIdx.x % CHUNK, mine = threadIdx.x / CHUNK;
  float sum = 0;
  for (int i = mine * part; i < (mine + 1) * part; i++) sum += paths[i][j];
  sums[mine][j] = sum;
  __syncthreads();
  sum = 0;
  for (int later = mine + 1; later < parts; later++) sum += sums[later][j];
  for (int i = (mine + 1) * part - 1; i >= mine * part; i--) paths[i][j] = sum += paths[i][j];
  __syncthreads();
  const int t = threadIdx.x / parts;
  sum = 0;
  for (int column = threadIdx.x % parts; column < t; column += parts) sum += paths[t][column];
  for (int offset = 1; offset < parts; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % parts == 0) f(t, sum);
}

#endif
