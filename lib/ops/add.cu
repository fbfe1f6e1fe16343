/* y = a + b;  da = dy, db = dy */
#include "core/cuda_map.h"

enum { A, B };

template <class T> static void forward(const comba_call *call) {
  const T *a = (const T *)call->input[A].data, *b = (const T *)call->input[B].data;
  T *y = (T *)call->output[0].data;
  comba_map(
      comba_shape_elements(&call->output[0].shape), y, false, [] __device__(float a, float b) { return a + b; }, a, b);
}

/* add(x, x) has one gradient for both: the first operand overwrites it, then the second adds. */
template <class T> static void backward(const comba_call *call) {
  const T *dy = (const T *)call->output_gradient[0].data;
  if (comba_cuda_gradient_absent<T>(call, 2, 0)) return;
  const map_target<T> da = {(T *)call->input_gradient[A].data, call->accumulate[A]};
  const map_target<T> db = {(T *)call->input_gradient[B].data, call->accumulate[B]};
  comba_map_two(
      comba_shape_elements(&call->output[0].shape), da, db, [] __device__(float d) { return make_float2(d, d); }, dy);
}

COMBA_CUDA_ROW(add);
