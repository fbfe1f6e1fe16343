/* y = 1 - e^g;  dg = -e^g dy */
#include "core/cuda_kernel.h"

template <class T> static void forward(const comba_call *call) {
  const float *g = (const float *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->input[0].shape), [=] __device__(int64_t i) { store(y + i, -expm1f(g[i])); });
}

template <class T> static void backward(const comba_call *call) {
  const float *g = (const float *)call->input[0].data;
  const T *dy = (const T *)call->output_gradient[0].data;
  float *dg = (float *)call->input_gradient[0].data;
  const bool accumulate = call->accumulate[0];
  if (comba_cuda_gradient_absent<T>(call, 1, 1) || !dg) return;
  comba_each(comba_shape_elements(&call->input[0].shape),
             [=] __device__(int64_t i) { put(dg + i, -expf(g[i]) * load(dy + i), accumulate); });
}

COMBA_CUDA_ROW(complement);
