/* Products x weight^T in which the weight has few rows: heads' gates. They are bound by the bytes of x, which is read once, 16 bytes a
 * thread and access; sums are in float. Few rows of x: cuda_few_rows.h. */
#ifndef COMBA_OPS_CUDA_THIN_H
#define COMBA_OPS_CUDA_THIN_H

#include "core/cuda_packet.h"
#include "core/host_device.h"

enum {
  THIN_COLUMNS = 8, /* of y at most */
  THIN_LANES = 8,   /* of a block, 32 threads wide, along the rows */
  THIN_PARTS = 264, /* two blocks a processor: into about so many parts backward cuts the rows */
};

/* Rows of a block of backward, which are behind one partial sum of the gradient of the weight: a few for each of its threads */
static inline COMBA_HOST_DEVICE int64_t thin_part(int64_t rows) {
  const int64_t part = rows / THIN_PARTS / 32 * 32;
  return part < 32 ? 32 : part > 256 ? 256 : part;
}

/* x (rows, k), weight (n, k), both of rows that begin at multiples of 16 bytes; bias (n) or NULL; y (rows, n) */
template <class T> struct thin_product {
  const T *x, *weight, *bias;
  int64_t rows;
  int n, k;

  static constexpr int pack = 16 / sizeof(T);
  __device__ float offset(int column) const {
    return bias ? load(bias + column) : 0;
  }
};

template <class T> static bool thin_aligned(const void *x, const void *weight, int64_t k) {
  return k % thin_product<T>::pack == 0 && k <= 1 << 20 && comba_cuda_aligned(x, 16) && comba_cuda_aligned(weight, 16);
}
/* The weight, padded to 4 or 8 rows, is kept in shared memory. */
template <class T> static bool thin_columns(int64_t n, int64_t k) {
  return n <= THIN_COLUMNS && (n <= 4 ? 4 : THIN_COLUMNS) * k * (int64_t)sizeof(T) <= 48 << 10;
}

static int64_t thin_parts(int64_t rows) {
  return (rows + thin_part(rows) - 1) / thin_part(rows);
}

/* ---- Few columns ---------------------------------------------------------------------------------------------------- */

enum { THIN_GROUP = 4, THIN_BLOCK = 64 }; /* rows that a warp has at once, that a block has */

/* N: n padded */
template <class T, int N>
static __global__ void __launch_bounds__(THIN_LANES * 32, 2) multiply_few_columns(const thin_product<T> p, T *y) {
  constexpr int pack = p.pack;
  extern __shared__ int4 shared[];
  const int lane = threadIdx.x, pieces = p.k / pack;
  for (int i = threadIdx.y * 32 + lane; i < N * pieces; i += THIN_LANES * 32)
    shared[i] = i < p.n * pieces ? ((const int4 *)p.weight)[i] : make_int4(0, 0, 0, 0);
  __syncthreads();
  const T *weight = (const T *)shared;
  const int64_t begin = (int64_t)blockIdx.x * THIN_BLOCK, end = min(p.rows, begin + THIN_BLOCK);
  for (int64_t first = begin + threadIdx.y * THIN_GROUP; first < end; first += THIN_LANES * THIN_GROUP) {
    float sum[THIN_GROUP][N] = {};
#pragma unroll 2
    for (int c = lane * pack; c < p.k; c += 32 * pack) {
      packet<T, pack> in[THIN_GROUP];
#pragma unroll
      for (int r = 0; r < THIN_GROUP; r++) in[r] = load_packet<pack>(p.x + min(first + r, p.rows - 1) * p.k + c);
#pragma unroll
      for (int j = 0; j < N; j++) {
        const packet<T, pack> w = load_packet<pack>(weight + j * p.k + c);
#pragma unroll
        for (int r = 0; r < THIN_GROUP; r++)
#pragma unroll
          for (int i = 0; i < pack; i++) sum[r][j] += in[r][i] * w[i];
      }
    }
    float mine = 0; /* of row lane / N, column lane % N */
#pragma unroll
    for (int r = 0; r < THIN_GROUP; r++)
#pragma unroll
      for (int j = 0; j < N; j++) {
        const float total = warp_sum(sum[r][j]);
        if (lane == r * N + j) mine = total;
      }
    const int64_t row = first + lane / N;
    const int column = lane % N;
    if (lane < THIN_GROUP * N && row < end && column < p.n) store(y + row * p.n + column, mine + p.offset(column));
  }
}

/* dx (rows, k) = or += dy weight: a thread has 16 bytes of the channels in several rows, and the weight's share in registers. */
template <class T, int N>
static __global__ void __launch_bounds__(THIN_LANES * 32)
    gradient_few_columns(const thin_product<T> p, const T *dy, bool accumulate, T *dx) {
  constexpr int pack = p.pack, GROUP = 4;
  const int c = (blockIdx.x * 32 + threadIdx.x) * pack;
  if (c >= p.k) return;
  packet<T, pack> w[N];
#pragma unroll
  for (int j = 0; j < N; j++) w[j] = load_packet<pack>(p.weight + (int64_t)min(j, p.n - 1) * p.k + c);
  const int64_t part = thin_part(p.rows), begin = (int64_t)blockIdx.y * part, end = min(p.rows, begin + part);
  for (int64_t first = begin + threadIdx.y; first < end; first += GROUP * THIN_LANES) {
    float sum[GROUP][pack] = {};
#pragma unroll
    for (int r = 0; r < GROUP; r++) {
      const int64_t row = first + r * THIN_LANES;
      if (!accumulate || row >= end) continue;
      const packet<T, pack> old = load_packet<pack>(dx + row * p.k + c);
#pragma unroll
      for (int i = 0; i < pack; i++) sum[r][i] = old[i];
    }
#pragma unroll
    for (int r = 0; r < GROUP; r++) {
      const int64_t row = first + r * THIN_LANES;
      if (row >= end) continue;
#pragma unroll
      for (int j = 0; j < N; j++) {
        const float d = j < p.n ? load(dy + row * p.n + j) : 0;
#pragma unroll
        for (int i = 0; i < pack; i++) sum[r][i] += d * w[j][i];
      }
      put_packet<pack>(dx + row * p.k + c, sum[r], false);
    }
  }
}

/* partial (parts, n, k) = dy^T x over the rows of a part */
template <class T, int N>
static __global__ void __launch_bounds__(THIN_LANES * 32)
    weight_gradient_few_columns(const thin_product<T> p, const T *dy, float *partial) {
  constexpr int pack = p.pack;
  __shared__ float meeting[THIN_LANES][pack][32];
  const int first = blockIdx.x * 32 * pack, c = first + threadIdx.x * pack;
  const int64_t part = thin_part(p.rows), begin = (int64_t)blockIdx.y * part, end = min(p.rows, begin + part);
  float sum[N][pack] = {};
  if (c < p.k) {
#pragma unroll 4
    for (int64_t row = begin + threadIdx.y; row < end; row += THIN_LANES) {
      const packet<T, pack> in = load_packet<pack>(p.x + row * p.k + c);
#pragma unroll
      for (int j = 0; j < N; j++) {
        const float d = j < p.n ? load(dy + row * p.n + j) : 0;
#pragma unroll
        for (int i = 0; i < pack; i++) sum[j][i] += d * in[i];
      }
    }
  }
  const int i = threadIdx.y, column = first + threadIdx.x * pack + i; /* that this thread adds up */
#pragma unroll
  for (int j = 0; j < N; j++) {
#pragma unroll
    for (int l = 0; l < pack; l++) meeting[threadIdx.y][l][threadIdx.x] = sum[j][l];
    __syncthreads();
    if (i < pack && column < p.k && j < p.n) {
      float total = 0;
      for (int lane = 0; lane < THIN_LANES; lane++) total += meeting[lane][i][threadIdx.x];
      partial[((int64_t)blockIdx.y * p.n + j) * p.k + column] = total;
    }
    __syncthreads();
  }
}

template <class T> static void thin_multiply_columns(const thin_product<T> &p, T *y) {
  const bool four = p.n <= 4;
  const auto kernel = four ? multiply_few_columns<T, 4> : multiply_few_columns<T, THIN_COLUMNS>;
  const int bytes = (four ? 4 : THIN_COLUMNS) * p.k * (int)sizeof(T);
  const unsigned blocks = (unsigned)((p.rows + THIN_BLOCK - 1) / THIN_BLOCK);
  kernel<<<blocks, dim3(32, THIN_LANES), bytes, comba_cuda_stream()>>>(p, y);
  comba_cuda_note(cudaGetLastError(), "a product with few columns");
}

template <class T> static dim3 thin_grid(const thin_product<T> &p) {
  return dim3((unsigned)((p.k / p.pack + 31) / 32), (unsigned)thin_parts(p.rows));
}

template <class T> static void thin_input_gradient(const thin_product<T> &p, const T *dy, bool accumulate, T *dx) {
  const auto kernel = p.n <= 4 ? gradient_few_columns<T, 4> : gradient_few_columns<T, THIN_COLUMNS>;
  kernel<<<thin_grid(p), dim3(32, THIN_LANES), 0, comba_cuda_stream()>>>(p, dy, accumulate, dx);
  comba_cuda_note(cudaGetLastError(), "a product with few columns, backward");
}

/* `partial`: thin_parts(rows) n k floats */
template <class T>
static void thin_weight_gradient(const thin_product<T> &p, const T *dy, float *partial, bool accumulate,
                                 float *dweight) {
  const auto kernel = p.n <= 4 ? weight_gradient_few_columns<T, 4> : weight_gradient_few_columns<T, THIN_COLUMNS>;
  kernel<<<thin_grid(p), dim3(32, THIN_LANES), 0, comba_cuda_stream()>>>(p, dy, partial);
  comba_cuda_note(cudaGetLastError(), "a product with few columns, backward");
  comba_cuda_sum_rows(partial, thin_parts(p.rows), (int64_t)p.n * p.k, accumulate, dweight);
}

#endif
