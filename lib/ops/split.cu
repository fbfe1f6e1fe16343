/* y_i (..., size_i) = the channels of x (..., d) from size_0 + ... + size_{i-1} on;  dx = the dy_i, one after the other */
#include "ops/cuda_rows.h"

template <class T> static void forward(const comba_call *call) {
  const comba_split_attributes *attributes = (const comba_split_attributes *)call->attributes;
  const int64_t rows = cuda_rows(&call->input[0]), d = cuda_last(&call->input[0]);
  const T *x = (const T *)call->input[0].data;
  for (int part = 0; part < attributes->parts; x += attributes->size[part++]) {
    const int64_t n = attributes->size[part];
    T *y = (T *)call->output[part].data;
    comba_each(rows * n, [=] __device__(int64_t i) { y[i] = x[i / n * d + i % n]; });
  }
}

template <class T> static void backward(const comba_call *call) {
  const comba_split_attributes *attributes = (const comba_split_attributes *)call->attributes;
  const int64_t rows = cuda_rows(&call->input[0]), d = cuda_last(&call->input[0]);
  const bool accumulate = call->accumulate[0];
  T *dx = (T *)call->input_gradient[0].data;
  if (!dx) return;
  for (int part = 0; part < attributes->parts; dx += attributes->size[part++]) {
    const int64_t n = attributes->size[part];
    const T *dy = (const T *)call->output_gradient[part].data;
    if (!dy && accumulate) continue;
    comba_each(rows * n, [=] __device__(int64_t i) { put(dx + i / n * d + i % n, dy ? load(dy + i) : 0, accumulate); });
  }
}

COMBA_CUDA_ROW(split);
