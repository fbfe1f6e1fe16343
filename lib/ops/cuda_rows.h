/* ops/rows.h for kernels: what operators over rows share. Everything before the last dimension counts as rows. */
#ifndef COMBA_OPS_CUDA_ROWS_H
#define COMBA_OPS_CUDA_ROWS_H

#include "core/cuda_kernel.h"

static inline int64_t cuda_last(const comba_view *x) {
  return x->shape.size[x->shape.rank - 1];
}
static inline int64_t cuda_rows(const comba_view *x) {
  return comba_shape_elements(&x->shape) / cuda_last(x);
}

/* Runs f(row, lane) for 0 <= row < rows, a warp each. */
enum { COMBA_CUDA_WARPS = 8 };
template <class F> __global__ void comba_each_row_kernel(int64_t rows, F f) {
  const int64_t row = (int64_t)blockIdx.x * COMBA_CUDA_WARPS + threadIdx.y;
  if (row < rows) f(row, (int64_t)threadIdx.x);
}
template <class F> void comba_each_row(int64_t rows, F f) {
  if (rows <= 0) return;
  comba_each_row_kernel<<<(unsigned)((rows + COMBA_CUDA_WARPS - 1) / COMBA_CUDA_WARPS), dim3(32, COMBA_CUDA_WARPS), 0,
                          comba_cuda_stream()>>>(rows, f);
  comba_cuda_note(cudaGetLastError(), "a launch by rows");
}

/* sum_j f(j) for 0 <= j < n, added up by a warp; in every lane. */
template <class F> __device__ inline float warp_sum_of(int64_t n, int64_t lane, F f) {
  float sum = 0;
  for (int64_t j = lane; j < n; j += 32) sum += f(j);
  return warp_sum(sum);
}

/* Rows that one thread adds up in a sum of columns: so many that there are no more than 256 parts, and a few dozen at least. */
static inline int64_t cuda_part(int64_t rows) {
  return rows > 64 * 256 ? (rows + 255) / 256 : 64;
}
static inline int64_t cuda_parts(int64_t rows) {
  return (rows + cuda_part(rows) - 1) / cuda_part(rows);
}
static inline int64_t cuda_columns_workspace(int64_t rows, int64_t n) {
  return (cuda_parts(rows) + 1) * n;
}

/* sum (n) = or += the columns of partial (parts, n), behind which there is room for n more. */
static inline void cuda_add_parts(float *partial, int64_t parts, int64_t n, bool accumulate, float *sum) {
  comba_cuda_sum_rows(partial, parts, n, accumulate, sum);
}
static inline void cuda_add_parts(float *partial, int64_t parts, int64_t n, bool accumulate, bfloat16 *sum) {
  float *total = partial + parts * n;
  comba_cuda_sum_rows(partial, parts, n, false, total);
  comba_each(n, [=] __device__(int64_t j) { put(sum + j, total[j], accumulate); });
}

/* sum_j (n) = or += sum over rows of f(row, j). `partial`: cuda_columns_workspace floats. */
template <class T, class F>
void cuda_sum_columns(int64_t rows, int64_t n, F f, float *partial, bool accumulate, T *sum) {
  const int64_t part = cuda_part(rows), parts = cuda_parts(rows);
  comba_each(parts * n, [=] __device__(int64_t i) {
    const int64_t first = i / n * part, end = min(rows, first + part);
    float total = 0;
    for (int64_t row = first; row < end; row++) total += f(row, i % n);
    partial[i] = total;
  });
  cuda_add_parts(partial, parts, n, accumulate, sum);
}

#endif
