/* Functions of gates. Logarithms of decays add up along a sequence, so these are exact to a few units in the last place. */
#ifndef COMBA_OPS_CUDA_GATES_H
#define COMBA_OPS_CUDA_GATES_H

#include "core/cuda_kernel.h"

/* ln(1 + e^x) */
static inline __device__ float softplus(float x) {
  return x > 20 ? x : log1pf(expf(x));
}
static inline __device__ float precise_sigmoid(float x) {
  return 1 / (1 + expf(-x));
}

#endif
