/* y = scale s, s = 1 / (1 + e^-x);  dx = scale s (1 - s) dy */
#include "core/cuda_map.h"
#include "ops/cuda_gates.h"

static float scale_of(const comba_call *call) {
  return (float)((const comba_sigmoid_gate_attributes *)call->attributes)->scale;
}

template <class T> static void forward(const comba_call *call) {
  const T *x = (const T *)call->input[0].data;
  const float scale = scale_of(call);
  comba_map(
      comba_shape_elements(&call->input[0].shape), (float *)call->output[0].data, false,
      [=] __device__(float x) { return scale * precise_sigmoid(x); }, x);
}

template <class T> static void backward(const comba_call *call) {
  const T *x = (const T *)call->input[0].data;
  const float *dy = (const float *)call->output_gradient[0].data, scale = scale_of(call);
  T *dx = (T *)call->input_gradient[0].data;
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !dx) return;
  comba_map(
      comba_shape_elements(&call->input[0].shape), dx, call->accumulate[0],
      [=] __device__(float x, float dy) { return scale * precise_sigmoid(x) * precise_sigmoid(-x) * dy; }, x, dy);
}

COMBA_CUDA_ROW(sigmoid_gate);
