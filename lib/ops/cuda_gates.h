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

/* decay_gate.c's, of a head's parameters */
static inline __device__ float decay_gate_value(comba_decay_kind kind, float a, const float *a_log, const float *bias) {
  const float floor = -100;
  float value = 0;
  switch (kind) {
  case COMBA_DECAY_MAMBA2: value = -expf(*a_log) * softplus(a + *bias); break;
  case COMBA_DECAY_SIGMOID: value = -softplus(-a - *bias); break;
  case COMBA_DECAY_CONSTANT: value = -expf(*a_log) * softplus(*bias); break;
  case COMBA_DECAY_ONE: break;
  }
  return value < floor ? floor : value; /* a NaN passes, so that it shows */
}

#endif
