/* y = value, of the shape that the attributes give */
#include "core/cuda_kernel.h"

/* The output is a gate, float whatever T is. */
template <class T> static void forward(const comba_call *call) {
  const comba_constant_attributes *attributes = (const comba_constant_attributes *)call->attributes;
  const float value = (float)attributes->value;
  float *y = (float *)call->output[0].data;
  comba_each(comba_shape_elements(&attributes->shape), [=] __device__(int64_t i) { y[i] = value; });
}

COMBA_CUDA_ROW_FORWARD(constant);
