/* The functions of activation.c. */
#ifndef COMBA_OPS_CUDA_ACTIVATION_H
#define COMBA_OPS_CUDA_ACTIVATION_H

#include "core/cuda_kernel.h"

/* Of the normal distribution. Hastings' approximation of the error function, off by less than 1.5e-7 (Abramowitz and Stegun, 7.1.26), takes
 * a third of the instructions that normcdff and expf take. */
struct normal {
  float below, density; /* the probability of less than x; and e^(-x^2 / 2) / sqrt(2 pi) */

  __device__ normal(float x) {
    const float power = __expf(-0.5f * x * x), t = __fdividef(1, 1 + 0.3275911f * 0.70710678f * fabsf(x));
    const float sum =
        t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const float beyond = 0.5f * sum * power;
    below = x < 0 ? beyond : 1 - beyond;
    density = 0.3989422804014327f * power;
  }
};

static inline __device__ float activation_value(comba_function function, float x) {
  switch (function) {
  case COMBA_SIGMOID: return sigmoid(x);
  case COMBA_SILU: return x * sigmoid(x);
  case COMBA_GELU: return x * normal(x).below;
  case COMBA_TANH: return tanhf(x);
  case COMBA_RELU: return x > 0 ? x : 0;
  case COMBA_SQUARED_RELU: return x > 0 ? x * x : 0;
  case COMBA_GELU_TANH: return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  default: return x > 0 ? x + 1 : expf(x);
  }
}

#endif
