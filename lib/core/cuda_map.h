/* Element-wise operators: each value is read once and written once, in packets of 16 bytes or more where all operands are aligned. */
#ifndef COMBA_CORE_CUDA_MAP_H
#define COMBA_CORE_CUDA_MAP_H

#include "core/cuda_packet.h"

enum { COMBA_CUDA_PACKET = 8 }; /* values of a thread */

template <int N, class Y, class F, class... P>
__device__ inline void map_packets(Y *y, bool accumulate, F f, P... inputs) {
  float value[N];
#pragma unroll
  for (int i = 0; i < N; i++) value[i] = f(inputs[i]...);
  put_packet<N>(y, value, accumulate);
}
template <int N, class Y, class F, class... X>
__global__ void map_kernel(int64_t n, Y *y, bool accumulate, F f, const X *...inputs) {
  const int64_t i = ((int64_t)blockIdx.x * COMBA_CUDA_BLOCK + threadIdx.x) * N;
  if (i < n) map_packets<N>(y + i, accumulate, f, load_packet<N>(inputs + i)...);
}

static inline unsigned map_blocks(int64_t n, int values) {
  const int64_t each = (int64_t)COMBA_CUDA_BLOCK * values;
  return (unsigned)((n + each - 1) / each);
}
template <class... P> bool map_packs(int64_t n, const P *...operands) {
  return n % COMBA_CUDA_PACKET == 0 && (comba_cuda_aligned(operands, 16) && ...);
}

/* y[i] = or += f(inputs[i]...) for 0 <= i < n */
template <class Y, class F, class... X> void comba_map(int64_t n, Y *y, bool accumulate, F f, const X *...inputs) {
  enum { N = COMBA_CUDA_PACKET };
  if (n <= 0) return;
  if (map_packs(n, y, inputs...))
    map_kernel<N><<<map_blocks(n, N), COMBA_CUDA_BLOCK, 0, comba_cuda_stream()>>>(n, y, accumulate, f, inputs...);
  else
    map_kernel<1><<<map_blocks(n, 1), COMBA_CUDA_BLOCK, 0, comba_cuda_stream()>>>(n, y, accumulate, f, inputs...);
  comba_cuda_note(cudaGetLastError(), "a map");
}

/* The same with two results, {a, b} = f(inputs[i]...); either may be NULL, and both the same memory: all inputs are read first, and a
 * is written before b. */
template <class Y> struct map_target {
  Y *data;
  bool accumulate;
};
template <int N, class Y, class F, class... P>
__device__ inline void map_two_packets(int64_t i, map_target<Y> a, map_target<Y> b, F f, P... inputs) {
  float first[N], second[N];
#pragma unroll
  for (int k = 0; k < N; k++) {
    const float2 value = f(inputs[k]...);
    first[k] = value.x;
    second[k] = value.y;
  }
  if (a.data) put_packet<N>(a.data + i, first, a.accumulate);
  if (b.data) put_packet<N>(b.data + i, second, b.accumulate);
}
template <int N, class Y, class F, class... X>
__global__ void map_two_kernel(int64_t n, map_target<Y> a, map_target<Y> b, F f, const X *...inputs) {
  const int64_t i = ((int64_t)blockIdx.x * COMBA_CUDA_BLOCK + threadIdx.x) * N;
  if (i < n) map_two_packets<N>(i, a, b, f, load_packet<N>(inputs + i)...);
}
template <class Y, class F, class... X>
void comba_map_two(int64_t n, map_target<Y> a, map_target<Y> b, F f, const X *...inputs) {
  enum { N = COMBA_CUDA_PACKET };
  if (n <= 0) return;
  if (map_packs(n, a.data, b.data, inputs...))
    map_two_kernel<N><<<map_blocks(n, N), COMBA_CUDA_BLOCK, 0, comba_cuda_stream()>>>(n, a, b, f, inputs...);
  else
    map_two_kernel<1><<<map_blocks(n, 1), COMBA_CUDA_BLOCK, 0, comba_cuda_stream()>>>(n, a, b, f, inputs...);
  comba_cuda_note(cudaGetLastError(), "a map to two");
}

#endif
