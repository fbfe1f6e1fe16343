/* y = silu(gate) up;  dgate = dy up (s + gate s (1 - s)), s = sigmoid(gate);  dup = dy silu(gate) */
#include "core/cuda_map.h"

enum { GATE, UP };

template <class T> static void forward(const comba_call *call) {
  const T *gate = (const T *)call->input[GATE].data, *up = (const T *)call->input[UP].data;
  T *y = (T *)call->output[0].data;
  comba_map(
      comba_shape_elements(&call->input[GATE].shape), y, false,
      [] __device__(float x, float up) { return x * sigmoid(x) * up; }, gate, up);
}

/* swiglu(x, x) has one memory for both gradients: that of the gate overwrites it, then the other adds. */
template <class T> static void backward(const comba_call *call) {
  const T *gate = (const T *)call->input[GATE].data, *up = (const T *)call->input[UP].data;
  const T *dy = (const T *)call->output_gradient[0].data;
  const map_target<T> dgate = {(T *)call->input_gradient[GATE].data, call->accumulate[GATE]};
  const map_target<T> dup = {(T *)call->input_gradient[UP].data, call->accumulate[UP]};
  if (comba_cuda_gradient_absent<T>(call, 2, 0)) return;
  comba_map_two(
      comba_shape_elements(&call->input[GATE].shape), dgate, dup,
      [] __device__(float x, float up, float d) {
        const float s = sigmoid(x);
        return make_float2(d * up * (s + x * s * (1 - s)), d * x * s);
      },
      gate, up, dy);
}

COMBA_CUDA_ROW(swiglu);
