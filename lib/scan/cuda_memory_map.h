/* Maps of a memory's matrix (memory_mapped.c has the formulas), by a block of threads. */
#ifndef COMBA_SCAN_CUDA_MEMORY_MAP_H
#define COMBA_SCAN_CUDA_MEMORY_MAP_H

#include "scan/cuda_block.h"

typedef struct memory_map {
  comba_memory_map kind;
  double exponent, total;
} memory_map;

/* |a|^{q-2} */
static inline __device__ float power_weight(float q, float a) {
  return q == 4 ? a * a : expf((q - 2) / 2 * logf(a * a + 1e-30f));
}

/* N = sum |A|^q, the least of it for a memory of zeros */
static inline __device__ double power_sum(const memory_map &map, int64_t size, const float *A) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) sum += power_weight((float)map.exponent, A[i]) * A[i] * A[i];
  return 1e-24 + (double)block_sum(sum);
}

/* N^exponent; the usual ones of q = 4 without a power */
static inline __device__ double power_of(double N, double exponent) {
  if (exponent == -0.5) return 1 / sqrt(N);
  if (exponent == -1.5) return 1 / (N * sqrt(N));
  return pow(N, exponent);
}

static inline __device__ bool is_power(const memory_map &map) {
  return map.kind == COMBA_MEMORY_POWER || map.kind == COMBA_MEMORY_MIRROR;
}

/* The numbers that sum to map.total: `count` groups, `step` apart, of n each, `stride` apart. */
typedef struct softmax_groups {
  int64_t count, step, n, stride;
} softmax_groups;
static inline __device__ softmax_groups groups_of(const memory_map &map, int64_t R, int64_t V) {
  if (map.kind == COMBA_MEMORY_SOFTMAX_COLUMN) return {V, 1, R, V};
  if (map.kind == COMBA_MEMORY_SOFTMAX_ROW) return {R, V, V, 1};
  return {1, 0, R * V, 1};
}

/* memory (R,V) = f(A) */
static __device__ __noinline__ void map_memory(memory_map map, int64_t R, int64_t V, const float *A, float *memory) {
  if (is_power(map)) {
    const float q = (float)map.exponent, scale = (float)power_of(power_sum(map, R * V, A), 2 / map.exponent - 1);
    const bool mirror = map.kind == COMBA_MEMORY_MIRROR;
    block_each(R * V, [=](int64_t i) { memory[i] = scale * A[i] * (mirror ? power_weight(q, A[i]) : 1); });
    return;
  }
  const softmax_groups s = groups_of(map, R, V);
  if (s.count == 1) { /* all warps share the one group */
    float largest = -INFINITY, sum = 0;
    for (int64_t i = threadIdx.x; i < s.n; i += blockDim.x) largest = fmaxf(largest, A[i]);
    largest = block_max(largest);
    for (int64_t i = threadIdx.x; i < s.n; i += blockDim.x) sum += memory[i] = expf(A[i] - largest);
    const float scale = (float)map.total / block_sum(sum);
    block_each(s.n, [=](int64_t i) { memory[i] *= scale; });
    return;
  }
  block_rows(s.count, [&](int64_t group, int lane) {
    const float *a = A + group * s.step;
    float *to = memory + group * s.step, largest = -INFINITY, sum = 0;
    for (int64_t i = lane; i < s.n; i += 32) largest = fmaxf(largest, a[i * s.stride]);
    largest = warp_max(largest);
    for (int64_t i = lane; i < s.n; i += 32) {
      to[i * s.stride] = expf(a[i * s.stride] - largest);
      sum += to[i * s.stride];
    }
    const float scale = (float)map.total / warp_sum(sum);
    for (int64_t i = lane; i < s.n; i += 32) to[i * s.stride] *= scale;
  });
}

/* The gradient (R,V) of the memory becomes that of A; memory = f(A). */
static __device__ __noinline__ void map_backward(memory_map map, int64_t R, int64_t V, const float *A,
                                                 const float *memory, float *gradient) {
  if (is_power(map)) {
    const float q = (float)map.exponent;
    const bool mirror = map.kind == COMBA_MEMORY_MIRROR;
    const double N = power_sum(map, R * V, A);
    float sum = 0; /* <gradient, f(A)> / scale */
    for (int64_t i = threadIdx.x; i < R * V; i += blockDim.x)
      sum += gradient[i] * A[i] * (mirror ? power_weight(q, A[i]) : 1);
    const double along = block_sum(sum);
    const float scale = (float)power_of(N, 2 / map.exponent - 1);
    const float to_norm = (float)(along * (2 - map.exponent) * power_of(N, 2 / map.exponent - 2));
    block_each(R * V, [=](int64_t i) {
      const float weight = power_weight(q, A[i]);
      gradient[i] = scale * (mirror ? (q - 1) * weight : 1) * gradient[i] + to_norm * weight * A[i];
    });
    return;
  }
  const softmax_groups s = groups_of(map, R, V);
  if (s.count == 1) {
    const float mean = block_inner_product(s.n, memory, gradient) / (float)map.total;
    block_each(s.n, [=](int64_t i) { gradient[i] = memory[i] * (gradient[i] - mean); });
    return;
  }
  block_rows(s.count, [&](int64_t group, int lane) {
    const float *m = memory + group * s.step;
    float *g = gradient + group * s.step, mean = 0;
    for (int64_t i = lane; i < s.n; i += 32) mean += m[i * s.stride] * g[i * s.stride];
    mean = warp_sum(mean) / (float)map.total;
    for (int64_t i = lane; i < s.n; i += 32) g[i * s.stride] = m[i * s.stride] * (g[i * s.stride] - mean);
  });
}

#endif
