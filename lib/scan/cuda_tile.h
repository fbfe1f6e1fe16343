/* Products of tiles in shared memory, a warp's 16 rows at a time: bfloat16 on tensor cores by mma.m16n8k16, float by plain
 * multiply-adds, both with the results spread over the warp as mma spreads them. Of every 16 x 8 results, lane l has four: rows l / 4
 * and l / 4 + 8, columns 2 (l % 4) and the next. Of a row, the four lanes of a quad have all columns. */
#ifndef COMBA_SCAN_CUDA_TILE_H
#define COMBA_SCAN_CUDA_TILE_H

#include "core/cuda_kernel.h"

enum { TILE_ROWS = 16 };

/* Between rows of a tile of `width` columns, a multiple of 8: 16 bytes more, which keep rows aligned and put eight of them on
 * different banks. */
template <class T, int width> constexpr int tile_stride = width + 16 / (int)sizeof(T);

/* to (rows, width) = `count` rows, `stride` apart, of `columns` numbers; zero beyond. The whole block copies. `aligned`: rows begin at
 * multiples of 16 bytes and hold a multiple of them. */
template <int rows, int width, class T>
static __device__ inline void tile_load(T *to, const T *from, int64_t stride, int64_t count, int64_t columns,
                                        bool aligned) {
  constexpr int piece = 16 / sizeof(T), pieces = width / piece, to_stride = tile_stride<T, width>;
  if (aligned) {
    for (int x = threadIdx.x; x < rows * pieces; x += blockDim.x) {
      const int row = x / pieces, column = x % pieces * piece;
      int4 value = {0, 0, 0, 0};
      if (row < count && column < columns) value = *(const int4 *)(from + row * stride + column);
      *(int4 *)(to + row * to_stride + column) = value;
    }
    return;
  }
  for (int x = threadIdx.x; x < rows * width; x += blockDim.x) {
    const int row = x / width, column = x % width;
    to[row * to_stride + column] = row < count && column < columns ? from[row * stride + column] : (T)0.0f;
  }
}

/* A copy of 16 bytes into shared memory that goes on while the thread works; zeros where there is nothing to copy. */
static __device__ inline void copy_async(void *to, const void *from, bool there) {
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}

/* tile_load by a block of `threads`, which goes on meanwhile where rows are aligned */
template <int rows, int width, int threads, class T>
static __device__ inline void tile_load_async(T *to, const T *from, int stride, int count, int columns, bool aligned) {
  constexpr int piece = 16 / sizeof(T), pieces = width / piece, to_stride = tile_stride<T, width>;
  if (!aligned) return tile_load<rows, width>(to, from, stride, count, columns, false);
  static_assert(threads % pieces == 0 && rows * pieces % threads == 0, "a thread keeps to its columns");
  const int column = threadIdx.x % pieces * piece, row = threadIdx.x / pieces;
  const int left = (column < columns ? count : 0) - row; /* rows from this thread's first on */
  const T *at = from + row * stride + column;
  to += row * to_stride + column;
#pragma unroll
  for (int n = 0; n < rows * pieces / threads; n++) {
    copy_async(to + n * (threads / pieces) * to_stride, at, n * (threads / pieces) < left);
    at += threads / pieces * stride;
  }
}

/* to (rows, width), rows `stride` apart, = a tile, by a block of `threads` */
template <int width, int threads, class T>
static __device__ inline void tile_copy_out(T *to, const T *from, int stride, int rows) {
  constexpr int piece = 16 / sizeof(T), pieces = width / piece, from_stride = tile_stride<T, width>;
  const int column = threadIdx.x % pieces * piece;
  int row = threadIdx.x / pieces;
  to += row * (int64_t)stride + column;
  from += row * from_stride + column;
  for (; row < rows; row += threads / pieces) {
    *(int4 *)to = *(const int4 *)from;
    to += threads / pieces * stride;
    from += threads / pieces * from_stride;
  }
}

/* to (rows, columns) = what a warp has in shared memory (16, 32), from aligned rows to such, 16 bytes an access */
template <class T>
static __device__ inline void warp_copy_out(T *to, int stride, int rows, int columns, const T *from, int from_stride) {
  constexpr int piece = 16 / sizeof(T), pieces = 32 / piece, step = 32 / pieces;
  const int row = threadIdx.x % 32 / pieces, column = threadIdx.x % pieces * piece;
  if (column >= columns) return;
#pragma unroll
  for (int n = 0; n < TILE_ROWS; n += step)
    if (row + n < rows)
      *(int4 *)(to + (row + n) * stride + column) = *(const int4 *)(from + (row + n) * from_stride + column);
}

/* f(n, i, row, column) for each result [n][i] of this lane: its row, i / 2 of the lane's two, and column in the warp's (16, N). */
template <int N, class F> static __device__ inline void tile_each(F f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < N / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) f(n, i, lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2);
}

static __device__ inline float2 load_pair(const float *from) {
  return *(const float2 *)from;
}
static __device__ inline float2 load_pair(const bfloat16 *from) {
  return __bfloat1622float2(*(const __nv_bfloat162 *)from);
}
static __device__ inline void store_pair(float *to, float x, float y) {
  *(float2 *)to = make_float2(x, y);
}
static __device__ inline void store_pair(bfloat16 *to, float x, float y) {
  *(__nv_bfloat162 *)to = __floats2bfloat162_rn(x, y);
}

/* to (16, N) = the warp's results, for a product to read: rounded to T */
template <int N, class T> static __device__ inline void tile_store(T *to, const float (&sum)[N / 8][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < N / 8; n++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      store_pair(to + (lane / 4 + half * 8) * tile_stride<T, N> + n * 8 + lane % 4 * 2, sum[n][half * 2],
                 sum[n][half * 2 + 1]);
}

/* to (16, N) = the warp's results, and back; rows `stride` apart */
template <int N, class T> static __device__ inline void tile_write(T *to, int stride, const float (&sum)[N / 8][4]) {
  to += threadIdx.x % 32 / 4 * stride + threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < N / 8; n++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      store_pair(to + half * 8 * stride + n * 8, sum[n][half * 2], sum[n][half * 2 + 1]);
}
template <int N, class T> static __device__ inline void tile_read(float (&sum)[N / 8][4], const T *from, int stride) {
  from += threadIdx.x % 32 / 4 * stride + threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < N / 8; n++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float2 pair = load_pair(from + half * 8 * stride + n * 8);
      sum[n][half * 2] = pair.x;
      sum[n][half * 2 + 1] = pair.y;
    }
}

/* to (rows, columns) in memory = or += the warp's results; rows `stride` apart, `aligned` to pairs */
template <int N, class T>
static __device__ inline void tile_write(T *to, int stride, int rows, int columns, bool aligned, bool accumulate,
                                         const float (&sum)[N / 8][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < N / 8; n++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = lane / 4 + half * 8, column = n * 8 + lane % 4 * 2;
      if (row >= rows || column >= columns) continue;
      T *at = to + row * stride + column;
      if (aligned) {
        const float2 old = accumulate ? load_pair(at) : make_float2(0, 0);
        store_pair(at, old.x + sum[n][half * 2], old.y + sum[n][half * 2 + 1]);
      } else {
        put(at, sum[n][half * 2], accumulate);
        if (column + 1 < columns) put(at + 1, sum[n][half * 2 + 1], accumulate);
      }
    }
}

/* The same for rows that begin at multiples of 16 bytes and hold a multiple of them, 16 bytes an access, which are whole sectors of the
 * cache. `scratch`: sheet_floats<N> of the warp's own. */
template <int N> constexpr int sheet_floats = TILE_ROWS *(N + 4);
template <int N, class T>
static __device__ inline void tile_write_wide(T *to, int stride, int rows, int columns, bool accumulate, float *scratch,
                                              const float (&sum)[N / 8][4]) {
  constexpr int piece = 16 / sizeof(T), pieces = N / piece;
  const int lane = threadIdx.x % 32, column = lane % pieces * piece;
  const int left = (column < columns ? rows : 0) - lane / pieces;
  __syncwarp();
  tile_write<N>(scratch, N + 4, sum);
  __syncwarp();
  to += lane / pieces * stride + column;
  scratch += lane / pieces * (N + 4) + column;
#pragma unroll
  for (int n = 0; n < TILE_ROWS * pieces / 32; n++, to += 32 / pieces * stride) {
    if (n * (32 / pieces) >= left) continue;
    float value[piece];
    T part[piece];
#pragma unroll
    for (int i = 0; i < piece; i += 4)
      *(float4 *)(value + i) = *(const float4 *)(scratch + n * (32 / pieces) * (N + 4) + i);
    if (accumulate) {
      *(int4 *)part = *(const int4 *)to;
#pragma unroll
      for (int i = 0; i < piece; i++) value[i] += load(part + i);
    }
#pragma unroll
    for (int i = 0; i < piece; i += 2) store_pair(part + i, value[i], value[i + 1]);
    *(int4 *)to = *(const int4 *)part;
  }
}

/* ---- bfloat16 ------------------------------------------------------------------------------------------------------- */

/* Four matrices of 8 x 8: lane l gives the address of row l % 8 of matrix l / 8, and gets row l / 4, columns 2 (l % 4) and the next, of
 * each matrix, or of its transpose. */
template <bool transpose> static __device__ inline void load_matrices(uint32_t (&to)[4], const bfloat16 *row) {
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
  if (transpose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
}

static __device__ inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* sum (16, N) += a b: a (16, K) row by row; b (K, N), or its transpose (N, K), row by row. N and K are multiples of 16. */
template <int N, int K, bool transpose_b>
static __device__ inline void tile_multiply(float (&sum)[N / 8][4], const bfloat16 *a, int a_stride, const bfloat16 *b,
                                            int b_stride) {
  const int lane = threadIdx.x % 32, row = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < K; k += 16) {
    uint32_t left[4], right[4];
    load_matrices<false>(left, a + (low + row) * a_stride + k + high);
#pragma unroll
    for (int n = 0; n < N; n += 16) { /* two products of 8 columns: k and k + 8 of the first, then of the second */
      if (transpose_b)
        load_matrices<false>(right, b + (n + high + row) * b_stride + k + low);
      else
        load_matrices<true>(right, b + (k + low + row) * b_stride + n + high);
      multiply_add(sum[n / 8], left, right[0], right[1]);
      multiply_add(sum[n / 8 + 1], left, right[2], right[3]);
    }
  }
}

/* sum[m] (16, N) += a[m] b for M tiles that share b; a[m] (16, K), or its transpose (K, 16), row by row */
template <int M, int N, int K, bool transpose_a, bool transpose_b>
static __device__ inline void tiles_multiply(float (&sum)[M][N / 8][4], const bfloat16 *const (&a)[M], int a_stride,
                                             const bfloat16 *b, int b_stride) {
  const int lane = threadIdx.x % 32, row = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
#pragma unroll 4
  for (int k = 0; k < K; k += 16) {
    uint32_t left[M][4], right[4];
#pragma unroll
    for (int m = 0; m < M; m++)
      if (transpose_a)
        load_matrices<true>(left[m], a[m] + (k + high + row) * a_stride + low);
      else
        load_matrices<false>(left[m], a[m] + (low + row) * a_stride + k + high);
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      if (transpose_b)
        load_matrices<false>(right, b + (n + high + row) * b_stride + k + low);
      else
        load_matrices<true>(right, b + (k + low + row) * b_stride + n + high);
#pragma unroll
      for (int m = 0; m < M; m++) {
        multiply_add(sum[m][n / 8], left[m], right[0], right[1]);
        multiply_add(sum[m][n / 8 + 1], left[m], right[2], right[3]);
      }
    }
  }
}

/* Two (16, K) in shared memory multiplied element by element: adds the sums of rows to `sum`, whose diagonal_part is this lane's part of the
 * whole. They are the diagonal of a b^T, of which half is computed at a time. */
template <int K>
static __device__ inline void tile_dot(float (&sum)[4], const bfloat16 *a, const bfloat16 *b, int stride) {
  const int lane = threadIdx.x % 32, row = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < K; k += 16) {
    uint32_t left[4], right[4];
    load_matrices<false>(left, a + (low + row) * stride + k + high);
    load_matrices<false>(right, b + (high + row) * stride + k + low);
    const uint32_t upper[4] = {left[0], 0, left[2], 0}, lower[4] = {0, left[1], 0, left[3]};
    multiply_add(sum, upper, right[0], right[1]);
    multiply_add(sum, lower, right[2], right[3]);
  }
}
template <class T> static __device__ inline float diagonal_part(const float (&sum)[4]) {
  if (sizeof(T) == sizeof(float)) return sum[0];
  const int i = threadIdx.x % 32 / 4 - threadIdx.x % 4 * 2; /* of this lane's columns, that of the diagonal */
  return i == 0 ? sum[0] + sum[2] : (i == 1 ? sum[1] + sum[3] : 0);
}

/* ---- float ---------------------------------------------------------------------------------------------------------- */

/* The same; N is a multiple of 8, K of 4. */
template <int N, int K, bool transpose_b>
static __device__ inline void tile_multiply(float (&sum)[N / 8][4], const float *a, int a_stride, const float *b,
                                            int b_stride) {
  const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int k = 0; k < K; k += 4) {
    const float4 upper = *(const float4 *)(a + row * a_stride + k),
                 lower = *(const float4 *)(a + (row + 8) * a_stride + k);
    const float left[2][4] = {{upper.x, upper.y, upper.z, upper.w}, {lower.x, lower.y, lower.z, lower.w}};
#pragma unroll
    for (int n = 0; n < N; n += 8) {
      float2 right[4];
      if (transpose_b) {
        const float4 even = *(const float4 *)(b + (n + column) * b_stride + k);
        const float4 odd = *(const float4 *)(b + (n + column + 1) * b_stride + k);
        right[0] = {even.x, odd.x};
        right[1] = {even.y, odd.y};
        right[2] = {even.z, odd.z};
        right[3] = {even.w, odd.w};
      } else {
#pragma unroll
        for (int j = 0; j < 4; j++) right[j] = *(const float2 *)(b + (k + j) * b_stride + n + column);
      }
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[n / 8][i] += left[i / 2][j] * (i % 2 ? right[j].y : right[j].x);
    }
  }
}

template <int K> static __device__ inline void tile_dot(float (&sum)[4], const float *a, const float *b, int stride) {
  for (int i = threadIdx.x % 32; i < TILE_ROWS * K; i += 32) {
    const int at = i / K * stride + i % K;
    sum[0] += a[at] * b[at];
  }
}

template <int M, int N, int K, bool transpose_a, bool transpose_b>
static __device__ inline void tiles_multiply(float (&sum)[M][N / 8][4], const float *const (&a)[M], int a_stride,
                                             const float *b, int b_stride) {
  const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll 2
  for (int k = 0; k < K; k++) {
    float left[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        left[m][half] = transpose_a ? a[m][k * a_stride + row + half * 8] : a[m][(row + half * 8) * a_stride + k];
#pragma unroll
    for (int n = 0; n < N; n += 8) {
      const float *at = b + (transpose_b ? (n + column) * b_stride + k : k * b_stride + n + column);
      const float right[2] = {at[0], at[transpose_b ? b_stride : 1]};
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[m][n / 8][i] += left[m][i / 2] * right[i % 2];
    }
  }
}

#endif
