/* y = scale f(x);  dx = scale f'(x) dy; the functions are listed in activation.c */
#include "core/cuda_map.h"
#include "ops/cuda_activation.h"

template <comba_function F> static __device__ float slope(float x) {
  const float s = sigmoid(x), t = tanhf(x);
  switch (F) {
  case COMBA_SIGMOID: return s * (1 - s);
  case COMBA_SILU: return s + x * s * (1 - s);
  case COMBA_GELU: {
    const normal n(x);
    return n.below + x * n.density;
  }
  case COMBA_TANH: return 1 - t * t;
  case COMBA_RELU: return x > 0;
  case COMBA_SQUARED_RELU: return x > 0 ? 2 * x : 0;
  case COMBA_GELU_TANH: {
    const float u = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + u) + 0.5f * x * (1 - u * u) * 0.7978845608f * (1 + 3 * 0.044715f * x * x);
  }
  default: return x > 0 ? 1 : expf(x);
  }
}

template <class T, comba_function F> static void map(const comba_call *call, float scale) {
  const T *x = (const T *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  comba_map(
      comba_shape_elements(&call->input[0].shape), y, false,
      [=] __device__(float x) { return scale * activation_value(F, x); }, x);
}

template <class T, comba_function F> static void map_gradient(const comba_call *call, float scale) {
  const T *x = (const T *)call->input[0].data, *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[0].data;
  comba_map(
      comba_shape_elements(&call->input[0].shape), dx, call->accumulate[0],
      [=] __device__(float x, float dy) { return scale * dy * slope<F>(x); }, x, dy);
}

#define DISPATCH(map_, call)                                                                                           \
  const comba_activation_attributes *attributes = (const comba_activation_attributes *)call->attributes;               \
  const float scale = attributes->scale == 0 ? 1 : (float)attributes->scale;                                           \
  switch (attributes->function) {                                                                                      \
  case COMBA_SIGMOID: map_<T, COMBA_SIGMOID>(call, scale); break;                                                      \
  case COMBA_SILU: map_<T, COMBA_SILU>(call, scale); break;                                                            \
  case COMBA_GELU: map_<T, COMBA_GELU>(call, scale); break;                                                            \
  case COMBA_TANH: map_<T, COMBA_TANH>(call, scale); break;                                                            \
  case COMBA_RELU: map_<T, COMBA_RELU>(call, scale); break;                                                            \
  case COMBA_ELU_PLUS_ONE: map_<T, COMBA_ELU_PLUS_ONE>(call, scale); break;                                            \
  case COMBA_SQUARED_RELU: map_<T, COMBA_SQUARED_RELU>(call, scale); break;                                            \
  case COMBA_GELU_TANH: map_<T, COMBA_GELU_TANH>(call, scale); break;                                                  \
  }

template <class T> static void forward(const comba_call *call) {
  DISPATCH(map, call)
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[0].data) return;
  DISPATCH(map_gradient, call)
}

COMBA_CUDA_ROW(activation);
