/* y = x r,  r = 1 / sqrt(sum(x^2) + epsilon);  dx = r (dy - y <y, dy>). Saved: r (rows). */
#include "ops/cuda_row_span.h"

template <class L, class T>
static __global__ void norm(const T *x, float epsilon, int64_t rows, int64_t d, T *y, float *rstd) {
  const int64_t row = own_row<L>();
  if (row >= rows) return;
  row_span<L, T> a;
  float squares = 0;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    a.load(x + row * d, first, d);
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++) squares += a[i] * a[i];
  }
  const float r = rsqrtf(row_sum<L>(squares) + epsilon);
  for (int64_t first = 0; first < d; first += L::SPAN) {
    if (d > L::SPAN) a.load(x + row * d, first, d);
    put_span<L>(y + row * d, first, d, false, [&](int i) { return a[i] * r; });
  }
  if (rstd && !threadIdx.x) rstd[row] = r;
}

template <class L, class T>
static __global__ void norm_gradient(const T *y, const float *rstd, const T *dy, int64_t rows, int64_t d, T *dx,
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
  projection = row_sum<L>(projection);
  for (int64_t first = 0; first < d; first += L::SPAN) {
    if (d > L::SPAN) {
      a.load(y + row * d, first, d);
      gradient.load(dy + row * d, first, d);
    }
    put_span<L>(dx + row * d, first, d, accumulate, [&](int i) { return r * (gradient[i] - a[i] * projection); });
  }
}

template <class T> static void forward(const comba_call *call) {
  const comba_norm_attributes *attributes = (const comba_norm_attributes *)call->attributes;
  const comba_shape *shape = &call->input[0].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const T *x = (const T *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  with_row_layout(d, cuda_rows_pack(d, x, y), [&](auto layout) {
    typedef decltype(layout) L;
    norm<L><<<row_blocks<L>(rows), row_threads<L>(), 0, comba_cuda_stream()>>>(x, (float)attributes->epsilon, rows, d,
                                                                               y, (float *)call->saved[0].data);
  });
  comba_cuda_note(cudaGetLastError(), "l2_norm");
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[0].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const T *y = (const T *)call->output[0].data, *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[0].data;
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !dx) return;
  with_row_layout(d, cuda_rows_pack(d, y, dy, dx), [&](auto layout) {
    typedef decltype(layout) L;
    norm_gradient<L><<<row_blocks<L>(rows), row_threads<L>(), 0, comba_cuda_stream()>>>(
        y, (const float *)call->saved[0].data, dy, rows, d, dx, call->accumulate[0]);
  });
  comba_cuda_note(cudaGetLastError(), "l2_norm, backward");
}

COMBA_CUDA_ROW(l2_norm);
