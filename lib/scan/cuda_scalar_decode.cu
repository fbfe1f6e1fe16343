/* The recurrence of cuda_scalar.h token by token, for sequences of a few tokens (decoding). It is bound by the state, which is read and
 * written once, 16 bytes a thread and access: a block has CHANNELS value channels of a sequence and head, a thread four neighbouring
 * ones of every so many-th key channel.
 *
 * What a token reads of the state comes from one pass over it: with r = S^T p and u = S^T q of the state before the token,
 *   w = beta (v - r),  o = scale (e^g u + <k, q> w),  S = e^g S + k w^T
 * so a block adds up once a token. */
#include "scan/cuda_scalar_private.h"

enum { THREADS = CUDA_SCALAR_KEYS, WARPS = THREADS / 32, NEIGHBOURS = 4 };
enum { KEY, FEEDBACK, QUERY, VECTORS };

/* `aligned`: rows of the states begin at multiples of 16 bytes */
template <class T, int CHANNELS>
static __global__ void __launch_bounds__(THREADS, 4) recur(const cuda_scalar c, bool aligned) {
  constexpr int lanes = CHANNELS / NEIGHBOURS, groups = THREADS / lanes, most = CUDA_SCALAR_KEYS / groups;
  __shared__ float vectors[VECTORS][CUDA_SCALAR_KEYS], dots[WARPS];
  __shared__ float2 parts[WARPS][CHANNELS];
  const int64_t K = c.K, V = c.V, blocks = (V + CHANNELS - 1) / CHANNELS, task = blockIdx.x / blocks;
  const int64_t sequence = task / c.heads, head = task % c.heads, first = blockIdx.x % blocks * CHANNELS;
  const int column = threadIdx.x % lanes * NEIGHBOURS, group = threadIdx.x / lanes, warp = threadIdx.x / 32;
  const int there = (int)max((int64_t)0, min((int64_t)NEIGHBOURS, V - first - column)); /* of this thread's channels */
  const int64_t q_head = head / (c.heads / c.q_heads), k_head = head / (c.heads / c.k_heads);
  const int64_t v_head = head / (c.heads / c.v_heads), outside = task * K * V + first + column;
  const float constant = c.retention ? 1 - exp2f(-(float)(c.retention + head)) : 1;
  const bool in_place = c.initial_state == c.final_state; /* a decoder's: it is read while the kernel before runs */
  float state[most][NEIGHBOURS] = {};
  comba_chain_next();
  if (!in_place) comba_chain_wait();
#pragma unroll
  for (int i = 0; i < most; i++) {
    const int64_t k = i * groups + group;
    if (!c.initial_state || k >= K) continue;
    const float *from = c.initial_state + outside + k * V;
    if (aligned && there) {
      const float4 four = *(const float4 *)from;
      state[i][0] = four.x, state[i][1] = four.y, state[i][2] = four.z, state[i][3] = four.w;
    } else {
#pragma unroll
      for (int j = 0; j < NEIGHBOURS; j++) state[i][j] = j < there ? from[j] : 0;
    }
  }
  if (in_place) comba_chain_wait();
  const int64_t start = c.cu_seqlens ? c.cu_seqlens[sequence] : sequence * c.length;
  const int64_t end = c.cu_seqlens ? c.cu_seqlens[sequence + 1] : start + c.length;
  for (int64_t row = start; row < end; row++) {
    const int64_t at_k = (row * c.k_heads + k_head) * K, at_q = (row * c.q_heads + q_head) * K;
    const int64_t at_v = (row * c.v_heads + v_head) * V + first, gate = row * c.heads + head;
    const float decay_ = c.g ? decay(c.g[gate]) : constant, beta = c.delta ? c.beta[gate] : 1;
    __syncthreads();
    const int64_t i = threadIdx.x;
    vectors[KEY][i] = i < K ? load((const T *)c.k + at_k + i) : 0;
    vectors[FEEDBACK][i] = i < K && c.delta ? load((const T *)(c.p ? c.p : c.k) + at_k + i) : 0;
    vectors[QUERY][i] = i < K ? load((const T *)c.q + at_q + i) : 0;
    float value[NEIGHBOURS];
#pragma unroll
    for (int j = 0; j < NEIGHBOURS; j++) value[j] = j < there ? load((const T *)c.v + at_v + column + j) : 0;
    __syncthreads();
    float read[NEIGHBOURS] = {}, output[NEIGHBOURS] = {}, dot = 0;
#pragma unroll
    for (int i = 0; i < most; i++) {
      const int k = i * groups + group;
      const float p = vectors[FEEDBACK][k], q = vectors[QUERY][k];
      dot += vectors[KEY][k] * q;
#pragma unroll
      for (int j = 0; j < NEIGHBOURS; j++) {
        read[j] += state[i][j] * p;
        output[j] += state[i][j] * q;
      }
    }
#pragma unroll
    for (int offset = lanes; offset < 32; offset *= 2) {
      dot += __shfl_xor_sync(~0u, dot, offset);
#pragma unroll
      for (int j = 0; j < NEIGHBOURS; j++) {
        read[j] += __shfl_xor_sync(~0u, read[j], offset);
        output[j] += __shfl_xor_sync(~0u, output[j], offset);
      }
    }
    if (threadIdx.x % 32 < lanes) {
      dots[warp] = dot;
#pragma unroll
      for (int j = 0; j < NEIGHBOURS; j++) parts[warp][column + j] = make_float2(read[j], output[j]);
    }
    __syncthreads();
    dot = 0;
#pragma unroll
    for (int j = 0; j < NEIGHBOURS; j++) read[j] = output[j] = 0;
#pragma unroll 2
    for (int other = 0; other < WARPS; other++) {
      dot += dots[other];
#pragma unroll
      for (int j = 0; j < NEIGHBOURS; j++) {
        const float2 part = parts[other][column + j];
        read[j] += part.x;
        output[j] += part.y;
      }
    }
#pragma unroll
    for (int j = 0; j < NEIGHBOURS; j++) {
      if (c.delta) value[j] = beta * (value[j] - (c.after_decay ? decay_ : 1) * read[j]);
      output[j] = c.scale * (decay_ * output[j] + dot * value[j]);
      if (!group && j < there) store((T *)c.o + (row * c.heads + head) * V + first + column + j, output[j]);
    }
#pragma unroll
    for (int i = 0; i < most; i++) {
      const float k = vectors[KEY][i * groups + group];
#pragma unroll
      for (int j = 0; j < NEIGHBOURS; j++) state[i][j] = decay_ * state[i][j] + k * value[j];
    }
  }
  if (!c.final_state) return;
#pragma unroll
  for (int i = 0; i < most; i++) {
    const int64_t k = i * groups + group;
    if (k >= K) continue;
    float *to = c.final_state + outside + k * V;
    if (aligned && there) {
      *(float4 *)to = make_float4(state[i][0], state[i][1], state[i][2], state[i][3]);
    } else {
#pragma unroll
      for (int j = 0; j < NEIGHBOURS; j++)
        if (j < there) to[j] = state[i][j];
    }
  }
}

/* Blocks of 32 channels read rows of 128 bytes; with so few that processors are idle, of 16. */
enum { WIDE = 32, SLIM = 16, FEW_BLOCKS = 256 };

template <class T> void cuda_scalar_decode(const cuda_scalar *c) {
  const int64_t tasks = (c->cu_seqlens ? c->sequences : c->batch) * c->heads;
  const bool wide = tasks * ((c->V + WIDE - 1) / WIDE) > FEW_BLOCKS;
  const int64_t channels = wide ? WIDE : SLIM, blocks = tasks * ((c->V + channels - 1) / channels);
  const bool aligned =
      c->V % NEIGHBOURS == 0 && (uintptr_t)c->initial_state % 16 == 0 && (uintptr_t)c->final_state % 16 == 0;
  const auto kernel = wide ? recur<T, WIDE> : recur<T, SLIM>;
  comba_chain("the scan token by token", kernel, (unsigned)blocks, THREADS, 0, 1, *c, aligned);
}

template void cuda_scalar_decode<float>(const cuda_scalar *);
template void cuda_scalar_decode<bfloat16>(const cuda_scalar *);
