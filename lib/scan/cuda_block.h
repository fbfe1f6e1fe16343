/* What a whole block of threads does together, on float matrices in memory that all of it sees. Each function ends with the block in step,
 * and expects it so.
 *
 * Products run on tensor cores in float's precision: a factor x is big + small, both of the 11 bits that TF32 has, and of the four products
 * the one of the small parts, 2^-22 of the whole, is left out. */
#ifndef COMBA_SCAN_CUDA_BLOCK_H
#define COMBA_SCAN_CUDA_BLOCK_H

#include "core/cuda_kernel.h"

template <class F> static __device__ inline void block_each(int64_t n, F f) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
  __syncthreads();
}

/* f(row, lane) with a warp to each row, 32 lanes */
template <class F> static __device__ inline void block_rows(int64_t rows, F f) {
  for (int64_t row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) f(row, (int)(threadIdx.x % 32));
  __syncthreads();
}

/* f(row, column) */
template <class F> static __device__ inline void block_matrix(int rows, int columns, F f) {
  for (int row = threadIdx.x / 32; row < rows; row += blockDim.x / 32)
    for (int column = threadIdx.x % 32; column < columns; column += 32) f(row, column);
  __syncthreads();
}

static inline __device__ void block_copy(int64_t n, const float *from, float *to) {
  block_each(n, [=](int64_t i) { to[i] = from ? from[i] : 0; });
}
static inline __device__ void block_add(int64_t n, const float *from, float *to) {
  block_each(n, [=](int64_t i) { to[i] += from[i]; });
}
static inline __device__ float block_inner_product(int64_t n, const float *a, const float *b) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += a[i] * b[i];
  return block_sum(sum);
}
/* By one warp; in every lane. */
static inline __device__ float warp_inner_product(int64_t n, const float *a, const float *b) {
  float sum = 0;
  for (int64_t i = threadIdx.x % 32; i < n; i += 32) sum += a[i] * b[i];
  return warp_sum(sum);
}

/* ---- Memory --------------------------------------------------------------------------------------------------------- */

/* Hands out shared memory while there is room, and then the block's part of the workspace; without either it only counts. */
struct block_arena {
  float *shared, *global;
  int64_t room, shared_used, global_used;
  __host__ __device__ float *take(int64_t floats) {
    const int64_t size = (floats + 3) / 4 * 4;
    int64_t &used = shared_used + size <= room ? shared_used : global_used;
    float *const base = &used == &shared_used ? shared : global, *const part = base ? base + used : NULL;
    used += size;
    return part;
  }
};

/* ---- Products ------------------------------------------------------------------------------------------------------- */

/* Between rows of a matrix of `width` columns: 16 bytes times an odd number, so that eight rows lie on different banks. */
static inline __host__ __device__ int row_stride(int64_t width) {
  const int stride = (int)(width + 3) / 4 * 4;
  return stride % 8 ? stride : stride + 4;
}

/* A factor of a product: element (i, j) is data[i * row + j * column]. */
typedef struct block_factor {
  const float *data;
  int row, column;
} block_factor;

static inline __device__ block_factor rows_of(const float *data, int64_t stride) {
  return {data, (int)stride, 1};
}
static inline __device__ block_factor transposed(const float *data, int64_t stride) {
  return {data, 1, (int)stride};
}

/* x to its two parts */
static inline __device__ void split(float x, uint32_t &big, uint32_t &small) {
  big = (__float_as_uint(x) + 0x1000) & 0xffffe000;
  small = __float_as_uint(x - __uint_as_float(big));
}

static __device__ inline void multiply_add_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* One step of 8 in k for N tiles of 8 columns; a and b are at the first of the two that this lane has of each, and say whether they count. */
template <int N>
static __device__ inline void product_step(float (&large)[N][4], float (&rest)[N][4], float (&more)[N][4],
                                           const float *const (&a)[2], int a_column, const float *const (&b)[N],
                                           int b_row, bool first, bool second) {
  uint32_t a_big[4], a_small[4];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    split(first ? *a[half] : 0, a_big[half], a_small[half]);
    split(second ? a[half][4 * a_column] : 0, a_big[half + 2], a_small[half + 2]);
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    uint32_t b_big[2], b_small[2];
    split(first ? *b[i] : 0, b_big[0], b_small[0]);
    split(second ? b[i][4 * b_row] : 0, b_big[1], b_small[1]);
    multiply_add_tf32(rest[i], a_small, b_big);
    multiply_add_tf32(more[i], a_big, b_small);
    multiply_add_tf32(large[i], a_big, b_big);
  }
}

/* put(i, j, sum, old) for the elements of a b from (row, column) on, 16 rows and 8 N columns of them, by a warp; old = get(i, j), all of
 * which are on their way before the product begins. */
template <int N, class G, class F>
static __device__ inline void product_tile(int m, int n, int k, const block_factor &a, const block_factor &b, int row,
                                           int column, G get, F put) {
  const int in_row = threadIdx.x % 32 / 4, in_k = threadIdx.x % 4;
  const float *left[2], *right[N];
  float large[N][4] = {}, rest[N][4] = {}, second[N][4] = {}, old[N][4];
  float(&more)[N][4] =
      N == 1 ? second : rest; /* one tile waits for its own sums: the fewer of them in a row the better */
  const auto each = [&](auto visit) {
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int to_row = row + in_row + e / 2 * 8, to_column = column + i * 8 + in_k * 2 + e % 2;
        if (to_row < m && to_column < n) visit(i, e, to_row, to_column);
      }
  };
  each([&](int i, int e, int to_row, int to_column) { old[i][e] = get(to_row, to_column); });
#pragma unroll
  for (int half = 0; half < 2; half++)
    left[half] = a.data + min(row + in_row + half * 8, m - 1) * a.row + in_k * a.column;
#pragma unroll
  for (int i = 0; i < N; i++) right[i] = b.data + in_k * b.row + min(column + i * 8 + in_row, n - 1) * b.column;
  int at = 0;
#pragma unroll(N == 4 ? 2 : 4)
  for (; at + 8 <= k; at += 8) {
    product_step<N>(large, rest, more, left, a.column, right, b.row, true, true);
#pragma unroll
    for (int half = 0; half < 2; half++) left[half] += 8 * a.column;
#pragma unroll
    for (int i = 0; i < N; i++) right[i] += 8 * b.row;
  }
  if (at < k) product_step<N>(large, rest, more, left, a.column, right, b.row, at + in_k < k, at + in_k + 4 < k);
  each([&](int i, int e, int to_row, int to_column) {
    put(to_row, to_column, large[i][e] + (N == 1 ? rest[i][e] + second[i][e] : rest[i][e]), old[i][e]);
  });
}

template <int N, class G, class F>
static __device__ inline void product_tiles(int m, int n, int k, const block_factor &a, const block_factor &b, G get,
                                            F put) {
  const int rows = (m + 15) / 16, columns = (n + 8 * N - 1) / (8 * N), warps = blockDim.x / 32;
  for (int tile = threadIdx.x / 32; tile < rows * columns; tile += warps)
    product_tile<N>(m, n, k, a, b, tile % rows * 16, tile / rows * 8 * N, get, put);
}

/* put(i, j, sum, get(i, j)) for each element of a b, (m,k) (k,n); without waiting for the block */
template <class G, class F>
static __device__ inline void start_update(int m, int n, int k, const block_factor &a, const block_factor &b, G get,
                                           F put) {
  const int tiles = (m + 15) / 16 * ((n + 7) / 8), warps = blockDim.x / 32;
  if (tiles >= 4 * warps)
    product_tiles<4>(m, n, k, a, b, get, put);
  else if (tiles >= 2 * warps)
    product_tiles<2>(m, n, k, a, b, get, put);
  else
    product_tiles<1>(m, n, k, a, b, get, put);
}
template <class G, class F>
static __device__ inline void block_update(int m, int n, int k, const block_factor &a, const block_factor &b, G get,
                                           F put) {
  start_update(m, n, k, a, b, get, put);
  __syncthreads();
}

/* put(i, j, sum) */
template <class F>
static __device__ inline void start_product(int m, int n, int k, const block_factor &a, const block_factor &b, F put) {
  start_update(
      m, n, k, a, b, [](int, int) { return 0.0f; }, [&](int i, int j, float sum, float) { put(i, j, sum); });
}
template <class F>
static __device__ inline void block_product(int m, int n, int k, const block_factor &a, const block_factor &b, F put) {
  start_product(m, n, k, a, b, put);
  __syncthreads();
}

/* to (m,n), rows `stride` apart, += factor a b */
static __device__ inline void start_sum(int m, int n, int k, const block_factor &a, const block_factor &b, float factor,
                                        float *to, int stride) {
  start_update(
      m, n, k, a, b, [=](int i, int j) { return to[i * stride + j]; },
      [=](int i, int j, float sum, float old) { to[i * stride + j] = old + factor * sum; });
}
static __device__ inline void block_sum_product(int m, int n, int k, const block_factor &a, const block_factor &b,
                                                float factor, float *to, int stride) {
  start_sum(m, n, k, a, b, factor, to, stride);
  __syncthreads();
}

/* ---- Rows of activations -------------------------------------------------------------------------------------------- */

/* What no thread writes while the kernel runs: such loads need not wait for stores before them. */
static __device__ inline float load_constant(const float *from) {
  return __ldg(from);
}
static __device__ inline float load_constant(const bfloat16 *from) {
  return (float)__ldg(from);
}

/* put(row, column, get(row, column)), four of a thread on their way at once; without waiting for the block */
template <class G, class F> static __device__ inline void start_map(int rows, int columns, G get, F put) {
  const int warps = blockDim.x / 32;
  for (int row = threadIdx.x / 32; row < rows; row += 2 * warps)
    for (int column = threadIdx.x % 32; column < columns; column += 64) {
      float value[4];
      const auto each = [&](auto visit) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int to_row = row + i / 2 * warps, to_column = column + i % 2 * 32;
          if (to_row < rows && to_column < columns) visit(i, to_row, to_column);
        }
      };
      each([&](int i, int to_row, int to_column) { value[i] = get(to_row, to_column); });
      each([&](int i, int to_row, int to_column) { put(to_row, to_column, value[i]); });
    }
}
template <class G, class F> static __device__ inline void block_map(int rows, int columns, G get, F put) {
  start_map(rows, columns, get, put);
  __syncthreads();
}
/* to (rows,columns), rows `stride` apart, = get(row, column); without waiting for the block */
template <class G> static __device__ inline void start_load(int rows, int columns, float *to, int stride, G get) {
  start_map(rows, columns, get, [=](int row, int column, float value) { to[row * stride + column] = value; });
}

#endif
