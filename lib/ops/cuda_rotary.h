/* Angles of rotary positions. They are counted in turns, as fractions of 2^64: their multiples drop whole turns and lose nothing, where
 * float32 would lose 1e-3 at position 1e4. */
#ifndef COMBA_OPS_CUDA_ROTARY_H
#define COMBA_OPS_CUDA_ROTARY_H

#include <math.h>
#include <stdint.h>

#include "ops/ops.h"

/* Of d channels pair j turns by base^(-2 j / d) = 2^(step j) a position. */
static inline double rotary_step(const comba_rotary_attributes *attributes, int64_t d) {
  return -2 * log2(attributes->base == 0 ? 10000 : attributes->base) / (double)d;
}

/* Of pair j at position n */
static inline __device__ float2 cosine_and_sine(double step, int64_t n, int j) {
  const double turns = exp2(step * j) / (2 * 3.14159265358979323846);
  const uint64_t angle = (uint64_t)n * (uint64_t)((turns - floor(turns)) * 0x1p64);
  float sine, cosine;
  sincospif((float)(int32_t)(angle >> 32) * 0x1p-31f, &sine, &cosine);
  return make_float2(cosine, sine);
}

#endif
