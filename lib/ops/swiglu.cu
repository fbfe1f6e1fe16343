/* y = silu(gate) up;  dgate = dy up (s + gate s (1 - s)), s = sigmoid(gate);  dup = dy silu(gate) */
#include "core/cuda_kernel.h"

enum { GATE, UP };

template <class T> static void forward(const comba_call *call) {
  const T *gate = (const T *)call->input[GATE].data, *up = (const T *)call->input[UP].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->input[GATE].shape), [=] __device__(int64_t i) {
    const float x = load(gate + i);
    store(y + i, x * sigmoid(x) * load(up + i));
  });
}

/* Both gradients are computed before either is written: swiglu(x, x) has one memory for the two. */
template <class T> static void backward(const comba_call *call) {
  const T *gate = (const T *)call->input[GATE].data, *up = (const T *)call->input[UP].data;
  const T *dy = (const T *)call->output_gradient[0].data;
  T *dgate = (T *)call->input_gradient[GATE].data, *dup = (T *)call->input_gradient[UP].data;
  const bool add_gate = call->accumulate[GATE], add_up = call->accumulate[UP];
  if (comba_cuda_gradient_absent<T>(call, 2, 0)) return;
  comba_each(comba_shape_elements(&call->input[GATE].shape), [=] __device__(int64_t i) {
    const float x = load(gate + i), s = sigmoid(x), d = load(dy + i);
    const float to_gate = d * load(up + i) * (s + x * s * (1 - s)), to_up = d * x * s;
    if (dgate) put(dgate + i, to_gate, add_gate);
    if (dup) put(dup + i, to_up, add_up);
  });
}

COMBA_CUDA_ROW(swiglu);
