/* y (B,d) = x[:, T-1] of x (B,T,d); dx is dy there and zero elsewhere */
#include "core/cuda_kernel.h"

template <class T> static void forward(const comba_call *call) {
  const int64_t length = call->input[0].shape.size[1], d = call->input[0].shape.size[2];
  const T *x = (const T *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  comba_each(call->input[0].shape.size[0] * d,
             [=] __device__(int64_t i) { y[i] = x[(i / d * length + length - 1) * d + i % d]; });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t length = call->input[0].shape.size[1], d = call->input[0].shape.size[2];
  const T *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[0].data;
  const bool accumulate = call->accumulate[0];
  comba_each(comba_shape_elements(&call->input[0].shape), [=] __device__(int64_t i) {
    const int64_t t = i / d % length;
    put(dx + i, t == length - 1 ? load(dy + i / d / length * d + i % d) : 0, accumulate);
  });
}

COMBA_CUDA_ROW(last_token);
