/* The recurrence of cuda_scalar.h token by token, for sequences of a few tokens (decoding). It is bound by the state, which is read and
 * written once, 16 bytes a thread and access: a block has 16 or 32 value channels of a sequence and head, a thread four neighbouring ones
 * of every so many-th key channel.
 *
 * What a token reads of the state comes from one pass over it: with r = S^T p and u = S^T q of the state before the token,
 *   w = beta (v - r),  o = scale (e^g u + <k, q> w),  S = e^g S + k w^T
 * so a block adds up once a token. */
#include "scan/cuda_scalar_private.h"
#include "scan/cuda_tile.h"

enum { THREADS = CUDA_SCALAR_KEYS, WARPS = THREADS / 32, NEIGHBOURS = 4 };
enum { BLOCKS = 4, PROCESSORS = 132 }; /* of an H100, and of each as many as fill it */
enum { KEY, FEEDBACK, QUERY, VECTORS };

/* CHANNELS value channels of a sequence and head, and of those a thread's */
struct share {
  int64_t sequence, head, channel; /* the thread's first */
  int64_t state;                   /* the place of its first number */
  int there;                       /* of its channels */

  __device__ share(const cuda_scalar &c, int item, int channels, int column) {
    const int64_t blocks = (c.V + channels - 1) / channels, task = item / blocks;
    sequence = task / c.heads;
    head = task % c.heads;
    channel = item % blocks * channels + column;
    state = task * c.K * c.V + channel;
    there = (int)max((int64_t)0, min((int64_t)NEIGHBOURS, c.V - channel));
  }
};

/* The tokens of a share: their outputs, and what becomes of the state, of which a thread has every `groups`-th key channel. */
template <class T, int CHANNELS, int most>
static __device__ void pass_tokens(const cuda_scalar &c, const share &s, float (&state)[most][NEIGHBOURS],
                                   float (&vectors)[VECTORS][CUDA_SCALAR_KEYS], float (&dots)[WARPS],
                                   float2 (&parts)[WARPS][CHANNELS]) {
  constexpr int lanes = CHANNELS / NEIGHBOURS, groups = THREADS / lanes;
  const int64_t K = c.K, V = c.V;
  const int column = threadIdx.x % lanes * NEIGHBOURS, group = threadIdx.x / lanes, warp = threadIdx.x / 32;
  const int64_t q_head = s.head / (c.heads / c.q_heads), k_head = s.head / (c.heads / c.k_heads);
  const int64_t v_head = s.head / (c.heads / c.v_heads);
  const float constant = c.retention ? 1 - exp2f(-(float)(c.retention + s.head)) : 1;
  const int64_t start = c.cu_seqlens ? c.cu_seqlens[s.sequence] : s.sequence * c.length;
  const int64_t end = c.cu_seqlens ? c.cu_seqlens[s.sequence + 1] : start + c.length;
  for (int64_t row = start; row < end; row++) {
    const int64_t at_k = (row * c.k_heads + k_head) * K, at_q = (row * c.q_heads + q_head) * K;
    const int64_t at_v = (row * c.v_heads + v_head) * V + s.channel, gate = row * c.heads + s.head;
    const float decay_ = c.g ? decay(c.g[gate]) : constant, beta = c.delta ? c.beta[gate] : 1;
    __syncthreads();
    const int64_t i = threadIdx.x;
    vectors[KEY][i] = i < K ? load((const T *)c.k + at_k + i) : 0;
    vectors[FEEDBACK][i] = i < K && c.delta ? load((const T *)(c.p ? c.p : c.k) + at_k + i) : 0;
    vectors[QUERY][i] = i < K ? load((const T *)c.q + at_q + i) : 0;
    float value[NEIGHBOURS];
#pragma unroll
    for (int j = 0; j < NEIGHBOURS; j++) value[j] = j < s.there ? load((const T *)c.v + at_v + j) : 0;
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
      if (!group && j < s.there) store((T *)c.o + (row * c.heads + s.head) * V + s.channel + j, output[j]);
    }
#pragma unroll
    for (int i = 0; i < most; i++) {
      const float k = vectors[KEY][i * groups + group];
#pragma unroll
      for (int j = 0; j < NEIGHBOURS; j++) state[i][j] = decay_ * state[i][j] + k * value[j];
    }
  }
}

/* A block takes one share after another. `aligned`: rows of the states begin at multiples of 16 bytes; then the state of the next share is
 * on its way to shared memory while this one's is worked on. Each thread copies there what it will take itself. */
template <class T, int CHANNELS>
static __global__ void __launch_bounds__(THREADS, BLOCKS) recur(const cuda_scalar c, int items, bool aligned) {
  constexpr int lanes = CHANNELS / NEIGHBOURS, groups = THREADS / lanes, most = CUDA_SCALAR_KEYS / groups;
  __shared__ float4 coming[most][THREADS];
  __shared__ float vectors[VECTORS][CUDA_SCALAR_KEYS], dots[WARPS];
  __shared__ float2 parts[WARPS][CHANNELS];
  const int64_t K = c.K, V = c.V;
  const int column = threadIdx.x % lanes * NEIGHBOURS, group = threadIdx.x / lanes;
  const auto fetch = [&](int item) {
    if (!aligned || item >= items) return;
    const share s(c, item, CHANNELS, column);
#pragma unroll
    for (int i = 0; i < most; i++) {
      const int64_t k = i * groups + group;
      const bool there = s.there && k < K;
      copy_async(&coming[i][threadIdx.x], c.initial_state + (there ? s.state + k * V : 0), there);
    }
    close_copies();
  };
  const bool in_place = c.initial_state == c.final_state; /* a decoder's: it is read while the kernel before runs */
  comba_chain_next();
  if (!in_place) comba_chain_wait();
  fetch(blockIdx.x);
  if (in_place) comba_chain_wait();
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const share s(c, item, CHANNELS, column);
    float state[most][NEIGHBOURS] = {};
    if (aligned) wait_for_copies<0>();
#pragma unroll
    for (int i = 0; i < most; i++) {
      const int64_t k = i * groups + group;
      if (aligned) {
        const float4 four = coming[i][threadIdx.x];
        state[i][0] = four.x, state[i][1] = four.y, state[i][2] = four.z, state[i][3] = four.w;
      } else if (c.initial_state && k < K) {
#pragma unroll
        for (int j = 0; j < NEIGHBOURS; j++) state[i][j] = j < s.there ? c.initial_state[s.state + k * V + j] : 0;
      }
    }
    fetch(item + gridDim.x);
    pass_tokens<T, CHANNELS>(c, s, state, vectors, dots, parts);
    if (!c.final_state) continue;
#pragma unroll
    for (int i = 0; i < most; i++) {
      const int64_t k = i * groups + group;
      if (k >= K) continue;
      float *to = c.final_state + s.state + k * V;
      if (aligned && s.there) {
        *(float4 *)to = make_float4(state[i][0], state[i][1], state[i][2], state[i][3]);
      } else {
#pragma unroll
        for (int j = 0; j < NEIGHBOURS; j++)
          if (j < s.there) to[j] = state[i][j];
      }
    }
  }
}

/* Of 32 channels, rows of 128 bytes; with so few that processors are idle, of 16. */
enum { WIDE = 32, SLIM = 16, FEW_SHARES = 256 };

template <class T> void cuda_scalar_decode(const cuda_scalar *c) {
  const int64_t tasks = (c->cu_seqlens ? c->sequences : c->batch) * c->heads;
  const bool wide = tasks * ((c->V + WIDE - 1) / WIDE) > FEW_SHARES;
  const int64_t channels = wide ? WIDE : SLIM, items = tasks * ((c->V + channels - 1) / channels);
  const int64_t blocks = items < BLOCKS * PROCESSORS ? items : BLOCKS * PROCESSORS;
  const bool aligned = c->initial_state && c->V % NEIGHBOURS == 0 && (uintptr_t)c->initial_state % 16 == 0 &&
                       (uintptr_t)c->final_state % 16 == 0;
  const auto kernel = wide ? recur<T, WIDE> : recur<T, SLIM>;
  comba_chain("the scan token by token", kernel, (unsigned)blocks, THREADS, 0, 1, *c, (int)items, aligned);
}

template void cuda_scalar_decode<float>(const cuda_scalar *);
template void cuda_scalar_decode<bfloat16>(const cuda_scalar *);
