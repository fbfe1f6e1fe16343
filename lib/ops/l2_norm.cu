/* y = x r,  r = 1 / sqrt(sum(x^2) + epsilon);  dx = r (dy - y <y, dy>). A warp a row. Saved: r (rows). */
#include "core/cuda_kernel.h"

enum { WARPS = 8 };

template <class T> static __global__ void norm(const T *x, float epsilon, int64_t rows, int64_t d, T *y, float *rstd) {
  const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.y;
  if (row >= rows) return;
  x += row * d;
  y += row * d;
  float squares = 0;
  for (int64_t j = threadIdx.x; j < d; j += 32) squares += load(x + j) * load(x + j);
  const float r = rsqrtf(warp_sum(squares) + epsilon);
  for (int64_t j = threadIdx.x; j < d; j += 32) store(y + j, load(x + j) * r);
  if (rstd && !threadIdx.x) rstd[row] = r;
}

template <class T>
static __global__ void norm_gradient(const T *y, const float *rstd, const T *dy, int64_t rows, int64_t d, T *dx,
                                     bool accumulate) {
  const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.y;
  if (row >= rows) return;
  y += row * d;
  dy += row * d;
  dx += row * d;
  float projection = 0;
  for (int64_t j = threadIdx.x; j < d; j += 32) projection += load(y + j) * load(dy + j);
  projection = warp_sum(projection);
  for (int64_t j = threadIdx.x; j < d; j += 32)
    put(dx + j, rstd[row] * (load(dy + j) - load(y + j) * projection), accumulate);
}

template <class T> static void forward(const comba_call *call) {
  const comba_norm_attributes *attributes = (const comba_norm_attributes *)call->attributes;
  const comba_shape *shape = &call->input[0].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  norm<<<(unsigned)((rows + WARPS - 1) / WARPS), dim3(32, WARPS), 0, comba_cuda_stream()>>>(
      (const T *)call->input[0].data, (float)attributes->epsilon, rows, d, (T *)call->output[0].data,
      (float *)call->saved[0].data);
  comba_cuda_note(cudaGetLastError(), "l2_norm");
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[0].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[0].data) return;
  norm_gradient<<<(unsigned)((rows + WARPS - 1) / WARPS), dim3(32, WARPS), 0, comba_cuda_stream()>>>(
      (const T *)call->output[0].data, (const float *)call->saved[0].data, (const T *)call->output_gradient[0].data,
      rows, d, (T *)call->input_gradient[0].data, call->accumulate[0]);
  comba_cuda_note(cudaGetLastError(), "l2_norm, backward");
}

COMBA_CUDA_ROW(l2_norm);
