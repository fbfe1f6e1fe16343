/* y = 1 - e^g;  dg = -e^g dy */
#include "core/cuda_map.h"

template <class T> static void forward(const comba_call *call) {
  const float *g = (const float *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  comba_map(
      comba_shape_elements(&call->input[0].shape), y, false, [] __device__(float g) { return -expm1f(g); }, g);
}

template <class T> static void backward(const comba_call *call) {
  const float *g = (const float *)call->input[0].data;
  const T *dy = (const T *)call->output_gradient[0].data;
  float *dg = (float *)call->input_gradient[0].data;
  if (comba_cuda_gradient_absent<T>(call, 1, 1) || !dg) return;
  comba_map(
      comba_shape_elements(&call->input[0].shape), dg, call->accumulate[0],
      [] __device__(float g, float d) { return -expf(g) * d; }, g, dy);
}

COMBA_CUDA_ROW(complement);
