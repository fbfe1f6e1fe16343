/* The recurrence of cuda_scalar.h token by token, for sequences of a few tokens (decoding): a stage of cuda_together.cu. It is bound by the
 * state, which is read and written once, 16 bytes a thread and access: half a block has 16 or 32 value channels of a sequence and head, a
 * thread four neighbouring ones of every so many-th key channel.
 *
 * What a token reads of the state comes from one pass over it: with r = S^T p and u = S^T q of the state before the token,
 *   w = beta (v - r),  o = scale (e^g u + <k, q> w),  S = e^g S + k w^T
 * so a half adds up once a token. */
#ifndef COMBA_SCAN_CUDA_SCALAR_TOKEN_H
#define COMBA_SCAN_CUDA_SCALAR_TOKEN_H

#include "core/cuda_grid_wait.h"
#include "scan/cuda_scalar_private.h"
#include "scan/cuda_tile.h"

enum { SCALAR_THREADS = CUDA_SCALAR_KEYS, SCALAR_WARPS = SCALAR_THREADS / 32, SCALAR_NEIGHBOURS = 4 };
enum { SCALAR_HALVES = STAGE_WORKERS / SCALAR_THREADS }; /* of a block */
/* Channels of a share: rows of 128 bytes; with so few shares that processors are idle, of 64. */
enum { SCALAR_WIDE = 32, SCALAR_SLIM = 16, SCALAR_FEW = 256 };
enum { KEY, FEEDBACK, QUERY, VECTORS };

/* A half's shared memory */
struct scalar_room {
  float4 coming[SCALAR_WIDE / SCALAR_NEIGHBOURS]
               [SCALAR_THREADS]; /* of the next share: each thread copies what it will take */
  float vectors[VECTORS][CUDA_SCALAR_KEYS], dots[SCALAR_WARPS];
  float2 parts[SCALAR_WARPS][SCALAR_WIDE];
};

/* Forward of a few tokens. `aligned`: rows of the states begin at multiples of 16 bytes; then the state of the next share is on its way to
 * shared memory while one is worked on. */
struct scalar_tokens {
  cuda_scalar c;
  int shares;
  bool wide, aligned;
};

/* CHANNELS value channels of a sequence and head, and of those a thread's */
struct scalar_share {
  int sequence, head, channel; /* the thread's first */
  int there;                   /* of its channels */
  int64_t state;               /* the place of its first number */

  __device__ scalar_share(const cuda_scalar &c, int share, int channels, int column) {
    const int V = (int)c.V, pieces = (V + channels - 1) / channels, task = share / pieces;
    sequence = task / (int)c.heads;
    head = task % (int)c.heads;
    channel = share % pieces * channels + column;
    state = task * c.K * c.V + channel;
    there = max(0, min((int)SCALAR_NEIGHBOURS, V - channel));
  }
};

/* For the threads of a half */
static __device__ inline void wait_for_half() {
  wait_at(STAGE_HALVES + threadIdx.x / SCALAR_THREADS, SCALAR_THREADS);
}

/* The tokens of a share: their outputs, and what becomes of the state, of which a thread has every `groups`-th key channel. */
template <class T, int CHANNELS, int most>
static __device__ inline void pass_tokens(const cuda_scalar &c, const scalar_share &s, scalar_room &room,
                                          float (&state)[most][SCALAR_NEIGHBOURS]) {
  constexpr int lanes = CHANNELS / SCALAR_NEIGHBOURS, groups = SCALAR_THREADS / lanes;
  const int K = (int)c.K, V = (int)c.V, heads = (int)c.heads;
  const int i = threadIdx.x % SCALAR_THREADS, warp = i / 32, column = i % lanes * SCALAR_NEIGHBOURS, group = i / lanes;
  const int q_heads = (int)c.q_heads, k_heads = (int)c.k_heads, v_heads = (int)c.v_heads;
  const int q_head = s.head / (heads / q_heads), k_head = s.head / (heads / k_heads),
            v_head = s.head / (heads / v_heads);
  const float constant = c.retention ? 1 - exp2f(-(float)(c.retention + s.head)) : 1;
  const int64_t start = c.cu_seqlens ? c.cu_seqlens[s.sequence] : s.sequence * c.length;
  const int64_t end = c.cu_seqlens ? c.cu_seqlens[s.sequence + 1] : start + c.length;
  for (int64_t row = start; row < end; row++) {
    const int64_t at_k = (row * k_heads + k_head) * K, at_q = (row * q_heads + q_head) * K;
    const int64_t at_v = (row * v_heads + v_head) * V + s.channel, gate = row * heads + s.head;
    const float decay_ = c.g ? decay(c.g[gate]) : constant, beta = c.delta ? c.beta[gate] : 1;
    wait_for_half();
    room.vectors[KEY][i] = i < K ? load((const T *)c.k + at_k + i) : 0;
    room.vectors[FEEDBACK][i] = i < K && c.delta ? load((const T *)(c.p ? c.p : c.k) + at_k + i) : 0;
    room.vectors[QUERY][i] = i < K ? load((const T *)c.q + at_q + i) : 0;
    float value[SCALAR_NEIGHBOURS];
#pragma unroll
    for (int j = 0; j < SCALAR_NEIGHBOURS; j++) value[j] = j < s.there ? load((const T *)c.v + at_v + j) : 0;
    wait_for_half();
    float read[SCALAR_NEIGHBOURS] = {}, output[SCALAR_NEIGHBOURS] = {}, dot = 0;
#pragma unroll
    for (int n = 0; n < most; n++) {
      const int k = n * groups + group;
      const float p = room.vectors[FEEDBACK][k], q = room.vectors[QUERY][k];
      dot += room.vectors[KEY][k] * q;
#pragma unroll
      for (int j = 0; j < SCALAR_NEIGHBOURS; j++) {
        read[j] += state[n][j] * p;
        output[j] += state[n][j] * q;
      }
    }
#pragma unroll
    for (int offset = lanes; offset < 32; offset *= 2) {
      dot += __shfl_xor_sync(~0u, dot, offset);
#pragma unroll
      for (int j = 0; j < SCALAR_NEIGHBOURS; j++) {
        read[j] += __shfl_xor_sync(~0u, read[j], offset);
        output[j] += __shfl_xor_sync(~0u, output[j], offset);
      }
    }
    if (i % 32 < lanes) {
      room.dots[warp] = dot;
#pragma unroll
      for (int j = 0; j < SCALAR_NEIGHBOURS; j++) room.parts[warp][column + j] = make_float2(read[j], output[j]);
    }
    wait_for_half();
    dot = 0;
#pragma unroll
    for (int j = 0; j < SCALAR_NEIGHBOURS; j++) read[j] = output[j] = 0;
#pragma unroll 2
    for (int other = 0; other < SCALAR_WARPS; other++) {
      dot += room.dots[other];
#pragma unroll
      for (int j = 0; j < SCALAR_NEIGHBOURS; j++) {
        const float2 part = room.parts[other][column + j];
        read[j] += part.x;
        output[j] += part.y;
      }
    }
#pragma unroll
    for (int j = 0; j < SCALAR_NEIGHBOURS; j++) {
      if (c.delta) value[j] = beta * (value[j] - (c.after_decay ? decay_ : 1) * read[j]);
      output[j] = c.scale * (decay_ * output[j] + dot * value[j]);
      if (!group && j < s.there) store((T *)c.o + (row * heads + s.head) * V + s.channel + j, output[j]);
    }
#pragma unroll
    for (int n = 0; n < most; n++) {
      const float k = room.vectors[KEY][n * groups + group];
#pragma unroll
      for (int j = 0; j < SCALAR_NEIGHBOURS; j++) state[n][j] = decay_ * state[n][j] + k * value[j];
    }
  }
}

/* A half takes one share after another. */
template <class T, int CHANNELS> static __device__ inline void pass_shares(const scalar_tokens &p, scalar_room &room) {
  constexpr int lanes = CHANNELS / SCALAR_NEIGHBOURS, groups = SCALAR_THREADS / lanes;
  constexpr int most = CUDA_SCALAR_KEYS / groups;
  const cuda_scalar &c = p.c;
  const int K = (int)c.K, V = (int)c.V;
  const int thread = threadIdx.x % SCALAR_THREADS, column = thread % lanes * SCALAR_NEIGHBOURS, group = thread / lanes;
  const int first = (int)(threadIdx.x / SCALAR_THREADS * gridDim.x + blockIdx.x), apart = SCALAR_HALVES * gridDim.x;
  const auto fetch = [&](int share) {
    if (!p.aligned || share >= p.shares) return;
    const scalar_share s(c, share, CHANNELS, column);
#pragma unroll
    for (int i = 0; i < most; i++) {
      const int k = i * groups + group;
      const bool there = s.there && k < K;
      copy_async(&room.coming[i][thread], c.initial_state + (there ? s.state + k * V : 0), there);
    }
    close_copies();
  };
  const bool in_place = c.initial_state == c.final_state; /* a decoder's, which nobody else writes */
  wait_for_workers(); /* who may still read there what the stage before has in shared memory */
  if (in_place) fetch(first);
  begin_stage();
  if (!in_place) fetch(first);
  for (int share = first; share < p.shares; share += apart) {
    const scalar_share s(c, share, CHANNELS, column);
    float state[most][SCALAR_NEIGHBOURS] = {};
    if (p.aligned) wait_for_copies<0>();
#pragma unroll
    for (int i = 0; i < most; i++) {
      const int k = i * groups + group;
      if (p.aligned) {
        const float4 four = room.coming[i][thread];
        state[i][0] = four.x, state[i][1] = four.y, state[i][2] = four.z, state[i][3] = four.w;
      } else if (c.initial_state && k < K) {
#pragma unroll
        for (int j = 0; j < SCALAR_NEIGHBOURS; j++)
          state[i][j] = j < s.there ? c.initial_state[s.state + k * V + j] : 0;
      }
    }
    fetch(share + apart);
    pass_tokens<T, CHANNELS>(c, s, room, state);
    if (!c.final_state) continue;
#pragma unroll
    for (int i = 0; i < most; i++) {
      const int k = i * groups + group;
      if (k >= K) continue;
      float *to = c.final_state + s.state + k * V;
      if (p.aligned && s.there) {
        *(float4 *)to = make_float4(state[i][0], state[i][1], state[i][2], state[i][3]);
      } else {
#pragma unroll
        for (int j = 0; j < SCALAR_NEIGHBOURS; j++)
          if (j < s.there) to[j] = state[i][j];
      }
    }
  }
}

template <class T> static __device__ inline void pass_scalar(const scalar_tokens &p, uint4 *shared) {
  scalar_room &room = ((scalar_room *)shared)[threadIdx.x / SCALAR_THREADS];
  if (p.wide)
    pass_shares<T, SCALAR_WIDE>(p, room);
  else
    pass_shares<T, SCALAR_SLIM>(p, room);
}

static scalar_tokens scalar_tokens_of(const cuda_scalar &c) {
  const int64_t tasks = (c.cu_seqlens ? c.sequences : c.batch) * c.heads;
  const bool wide = tasks * ((c.V + SCALAR_WIDE - 1) / SCALAR_WIDE) > SCALAR_FEW;
  const int64_t channels = wide ? SCALAR_WIDE : SCALAR_SLIM;
  const bool aligned = c.initial_state && c.V % SCALAR_NEIGHBOURS == 0 && (uintptr_t)c.initial_state % 16 == 0 &&
                       (uintptr_t)c.final_state % 16 == 0;
  return {c, (int)(tasks * ((c.V + channels - 1) / channels)), wide, aligned};
}

#endif
