/* y = x, from float32 to the type of activations */
#include "core/cuda_kernel.h"

template <class T> static void forward(const comba_call *call) {
  const float *x = (const float *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->input[0].shape), [=] __device__(int64_t i) { store(y + i, load(x + i)); });
}

template <class T> static void backward(const comba_call *call) {
  const T *dy = (const T *)call->output_gradient[0].data;
  float *dx = (float *)call->input_gradient[0].data;
  const bool accumulate = call->accumulate[0];
  if (comba_cuda_gradient_absent<T>(call, 1, 1) || !dx) return;
  comba_each(comba_shape_elements(&call->input[0].shape),
             [=] __device__(int64_t i) { put(dx + i, load(dy + i), accumulate); });
}

COMBA_CUDA_ROW(narrow);
