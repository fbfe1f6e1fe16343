/* y = x r,  r = 1 / sqrt(sum(x^2) + epsilon);  dx = r (dy - y <y, dy>). Saved: r (rows). */
#include "ops/cuda_l2_norm.h"

template <class T> static void forward(const comba_call *call) {
  const comba_norm_attributes *attributes = (const comba_norm_attributes *)call->attributes;
  const comba_shape *shape = &call->input[0].shape;
  const int64_t d = shape->size[shape->rank - 1];
  cuda_divide_rows((const T *)call->input[0].data, attributes->epsilon, comba_shape_elements(shape) / d, d,
                   (T *)call->output[0].data, (float *)call->saved[0].data);
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[0].shape;
  const int64_t d = shape->size[shape->rank - 1];
  T *dx = (T *)call->input_gradient[0].data;
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !dx) return;
  cuda_divide_rows_gradient((const T *)call->output[0].data, (const float *)call->saved[0].data,
                            (const T *)call->output_gradient[0].data, comba_shape_elements(shape) / d, d, dx,
                            call->accumulate[0]);
}

COMBA_CUDA_ROW(l2_norm);
