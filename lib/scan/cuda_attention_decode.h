/* Attention of new tokens against themselves and a ring of the keys and values before them, token number n in row n modulo capacity. Several
 * warps have a new token and query head. They take keys in turns, RUN of them at a time, a lane every 32nd channel; each keeps its largest
 * score and the sum of 2^(score - largest), as in attention.cu, and at the end the warps' shares are added in order. */
#ifndef COMBA_SCAN_CUDA_ATTENTION_DECODE_H
#define COMBA_SCAN_CUDA_ATTENTION_DECODE_H

#include "core/cuda_kernel.h"

enum { ATTENTION_TOKEN_CHANNELS = 256, ATTENTION_TOKEN_RUN = 4 };

struct attention_tokens {
  int64_t batch, length, heads, key_heads, D, capacity, window; /* length: T */
  float power_scale;                                            /* scale log2(e) */
  const void *q, *k, *v;
  const float *cache_k, *cache_v;
  const int32_t *position; /* number of the first new token */
  void *o;
  float *new_cache_k, *new_cache_v;
};

/* Operands of attention_decode in a call */
attention_tokens cuda_attention_decode_of(const comba_call *call);

/* What a warp found: a lane's channels of its weighted sum of values. PIECES: channels of a lane, D / 32 rounded up */
template <int PIECES> struct attention_part {
  float largest = -INFINITY, sum = 0, o[PIECES] = {};
};
/* Those of all warps of a head */
template <int PIECES, int WARPS> struct attention_room { float largest[WARPS], sum[WARPS], o[WARPS][PIECES * 32]; };

/* The keys that warp `warp` of `warps` takes; row: in (B T) */
template <class T, int PIECES>
static __device__ inline attention_part<PIECES> attend(const attention_tokens &p, int64_t row, int64_t head, int warp,
                                                       int warps) {
  const int lane = threadIdx.x % 32;
  const int64_t key_head = head / (p.heads / p.key_heads), position = *p.position, token = position + row % p.length;
  const int64_t batch = row / p.length, q_offset = (row * p.heads + head) * p.D;
  /* the first token that is seen: inside the window, and in the ring if it is not new */
  const int64_t oldest = max((int64_t)0, position - p.capacity);
  const int64_t first = p.window ? max(oldest, token - p.window + 1) : oldest;
  attention_part<PIECES> part;
  float q[PIECES];
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++) {
    const int channel = piece * 32 + lane;
    q[piece] = channel < p.D ? load((const T *)p.q + q_offset + channel) * p.power_scale : 0;
  }
  for (int64_t start = first + warp * ATTENTION_TOKEN_RUN; start <= token; start += warps * ATTENTION_TOKEN_RUN) {
    float score[ATTENTION_TOKEN_RUN] = {}, v[ATTENTION_TOKEN_RUN][PIECES];
#pragma unroll
    for (int i = 0; i < ATTENTION_TOKEN_RUN; i++) {
      const int64_t key = min(start + i, token); /* read again beyond the last */
      const bool given = key >= position;
      const int64_t key_row = given ? batch * p.length + key - position : batch * p.capacity + key % p.capacity;
      const int64_t offset = (key_row * p.key_heads + key_head) * p.D;
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++) {
        const int channel = piece * 32 + lane;
        v[i][piece] = 0;
        if (channel >= p.D) continue;
        const float k = given ? load((const T *)p.k + offset + channel) : p.cache_k[offset + channel];
        v[i][piece] = given ? load((const T *)p.v + offset + channel) : p.cache_v[offset + channel];
        score[i] += q[piece] * k;
      }
    }
    float top = part.largest;
#pragma unroll
    for (int i = 0; i < ATTENTION_TOKEN_RUN; i++) {
      score[i] = warp_sum(score[i]);
      if (start + i > token) score[i] = -INFINITY;
      top = fmaxf(top, score[i]);
    }
    const float shrink = exp2f(part.largest - top);
    part.largest = top;
    part.sum *= shrink;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) part.o[piece] *= shrink;
#pragma unroll
    for (int i = 0; i < ATTENTION_TOKEN_RUN; i++) {
      const float weight = exp2f(score[i] - top);
      part.sum += weight;
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++) part.o[piece] += weight * v[i][piece];
    }
  }
  return part;
}

template <int PIECES, int WARPS>
static __device__ inline void put_part(attention_room<PIECES, WARPS> *room, const attention_part<PIECES> &part,
                                       int warp) {
  const int lane = threadIdx.x % 32;
  if (!lane) {
    room->largest[warp] = part.largest;
    room->sum[warp] = part.sum;
  }
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++) room->o[warp][piece * 32 + lane] = part.o[piece];
}

/* A channel of the result, from what warps `first` to `first` + `warps` found */
template <int PIECES, int WARPS>
static __device__ inline float join_parts(const attention_room<PIECES, WARPS> &room, int first, int warps,
                                          int channel) {
  float top = -INFINITY, total = 0, result = 0;
  for (int i = first; i < first + warps; i++) top = fmaxf(top, room.largest[i]);
  for (int i = first; i < first + warps; i++) {
    const float share = exp2f(room.largest[i] - top); /* 0 where a warp had no key */
    total += share * room.sum[i];
    result += share * room.o[i][channel];
  }
  return result / total;
}

#endif
