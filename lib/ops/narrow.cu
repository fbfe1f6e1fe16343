/* y = x, from float32 to the type of activations */
#include "core/cuda_map.h"

template <class T> static void forward(const comba_call *call) {
  const float *x = (const float *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  comba_map(
      comba_shape_elements(&call->input[0].shape), y, false, [] __device__(float x) { return x; }, x);
}

template <class T> static void backward(const comba_call *call) {
  const T *dy = (const T *)call->output_gradient[0].data;
  float *dx = (float *)call->input_gradient[0].data;
  if (comba_cuda_gradient_absent<T>(call, 1, 1) || !dx) return;
  comba_map(
      comba_shape_elements(&call->input[0].shape), dx, call->accumulate[0], [] __device__(float d) { return d; }, dy);
}

COMBA_CUDA_ROW(narrow);
