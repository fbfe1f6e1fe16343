/* What a whole block of threads does together, on dense float matrices in memory that all of it sees. Each function ends with the block
 * in step, and expects it so. */
#ifndef COMBA_SCAN_CUDA_BLOCK_H
#define COMBA_SCAN_CUDA_BLOCK_H

#include "core/cuda_kernel.h"

template <class F> static __device__ void block_each(int64_t n, F f) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
  __syncthreads();
}

/* f(row, lane) with a warp to each row, 32 lanes */
template <class F> static __device__ void block_rows(int64_t rows, F f) {
  for (int64_t row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) f(row, (int)(threadIdx.x % 32));
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

/* A factor of a product: element (i, j) is data[i * row + j * column]. */
typedef struct block_factor {
  const float *data;
  int row, column;
} block_factor;

static inline __device__ block_factor rows_of(const float *data, int64_t width) {
  return {data, (int)width, 1};
}
static inline __device__ block_factor transposed(const float *data, int64_t width) {
  return {data, 1, (int)width};
}

/* c (m,n) = beta c + alpha a b, c not read where beta is 0; a thread an element */
static __device__ __noinline__ void block_product(int64_t m, int64_t n, int64_t k, float alpha, block_factor a,
                                                  block_factor b, float beta, float *c) {
  block_each(m * n, [=](int64_t x) {
    const float *left = a.data + x / n * a.row, *right = b.data + x % n * b.column;
    float sum = 0;
    for (int64_t i = 0; i < k; i++, left += a.column, right += b.row) sum += *left * *right;
    c[x] = (beta != 0 ? beta * c[x] : 0) + alpha * sum;
  });
}

#endif
