/* Rows divided by their lengths: of l2_norm, and of what ends with it. */
#ifndef COMBA_OPS_CUDA_L2_NORM_H
#define COMBA_OPS_CUDA_L2_NORM_H

#include "ops/cuda_row_span.h"

template <class L, class T>
static __global__ void divide_rows(const T *x, float epsilon, int64_t rows, int64_t d, T *y, float *rstd) {
  const int64_t row = own_row<L>();
  if (row >= rows) return;
  row_span<L, T> a;
  float squares = 0;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    a.load(x + row * d, first, d);
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++) squares += a[i] * a[i];
  }
  const float r = rsqrtf(row_sum<L>(squares, 0) + epsilon);
  for (int64_t first = 0; first < d; first += L::SPAN) {
    if (d > L::SPAN) a.load(x + row * d, first, d);
    put_span<L>(y + row * d, first, d, false, [&](int i) { return a[i] * r; });
  }
  if (rstd && !threadIdx.x) rstd[row] = r;
}

template <class L, class T>
static __global__ void divide_rows_gradient(const T *y, const float *rstd, const T *dy, int64_t rows, int64_t d, T *dx,
                                            bool accumulate) {
  const int64_t row = own_row<L>();
  if (row >= rows) return;
  const float r = rstd[row];
  row_span<L, T> a, gradient;
  float projection = 0;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    a.load(y + row * d, first, d);
    gradient.load(dy + row * d, first, d);
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++) projection += a[i] * gradient[i];
  }
  projection = row_sum<L>(projection, 0);
  for (int64_t first = 0; first < d; first += L::SPAN) {
    if (d > L::SPAN) {
      a.load(y + row * d, first, d);
      gradient.load(dy + row * d, first, d);
    }
    put_span<L>(dx + row * d, first, d, accumulate, [&](int i) { return r * (gradient[i] - a[i] * projection); });
  }
}

/* y (rows, d) = x r, r (rows, or NULL) = 1 / sqrt(sum(x^2) + epsilon); y may be x */
template <class T>
static void cuda_divide_rows(const T *x, double epsilon, int64_t rows, int64_t d, T *y, float *rstd) {
  with_row_layout(d, cuda_rows_pack(d, x, y), [&](auto layout) {
    typedef decltype(layout) L;
    divide_rows<L>
        <<<row_blocks<L>(rows), row_threads<L>(), 0, comba_cuda_stream()>>>(x, (float)epsilon, rows, d, y, rstd);
  });
  comba_cuda_note(cudaGetLastError(), "rows divided by their lengths");
}

/* dx = or += r (dy - y <y, dy>) */
template <class T>
static void cuda_divide_rows_gradient(const T *y, const float *rstd, const T *dy, int64_t rows, int64_t d, T *dx,
                                      bool accumulate) {
  with_row_layout(d, cuda_rows_pack(d, y, dy, dx), [&](auto layout) {
    typedef decltype(layout) L;
    divide_rows_gradient<L>
        <<<row_blocks<L>(rows), row_threads<L>(), 0, comba_cuda_stream()>>>(y, rstd, dy, rows, d, dx, accumulate);
  });
  comba_cuda_note(cudaGetLastError(), "rows divided by their lengths, backward");
}

#endif
