/* The functions of activation.c. */
#ifndef COMBA_OPS_CUDA_ACTIVATION_H
#define COMBA_OPS_CUDA_ACTIVATION_H

#include "core/cuda_kernel.h"

static inline __device__ float activation_value(comba_function function, float x) {
  switch (function) {
  case COMBA_SIGMOID: return sigmoid(x);
  case COMBA_SILU: return x * sigmoid(x);
  case COMBA_GELU: return x * normcdff(x);
  case COMBA_TANH: return tanhf(x);
  case COMBA_RELU: return x > 0 ? x : 0;
  case COMBA_SQUARED_RELU: return x > 0 ? x * x : 0;
  case COMBA_GELU_TANH: return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  default: return x > 0 ? x + 1 : expf(x);
  }
}

#endif
