/* Causal attention of T new tokens against themselves and a ring of the keys and values before them, token number n in row n modulo
 * capacity; then the last new tokens are written into the ring. Forward alone.
 *
 * A block has one new token and query head. Its warps take keys in turns, RUN of them at a time, a lane every 32nd channel; each keeps
 * its largest score and the sum of 2^(score - largest), as in attention.cu, and at the end the warps' shares are added in order. */
#include "core/cuda_kernel.h"

enum { Q, KEY, VALUE, CACHE_K, CACHE_V, POSITION };
enum { O, NEW_CACHE_K, NEW_CACHE_V };
enum { D_MAX = 256, WARPS = 16, RUN = 4 };

template <class T> struct problem {
  int64_t length, heads, key_heads, D, capacity, window; /* length: T */
  float power_scale;                                     /* scale log2(e) */
  const T *q, *k, *v;
  const float *cache_k, *cache_v;
  const int32_t *position; /* number of the first new token */
  T *o;
};

/* PIECES: channels of a lane, D / 32 rounded up */
template <class T, int PIECES> static __global__ void attend(const problem<T> p) {
  __shared__ float largest_of[WARPS], sum_of[WARPS], o_of[WARPS][PIECES * 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t head = blockIdx.x % p.heads, row = blockIdx.x / p.heads, batch = row / p.length; /* row: in (B T) */
  const int64_t key_head = head / (p.heads / p.key_heads), position = *p.position, token = position + row % p.length;
  /* the first token that is seen: inside the window, and in the ring if it is not new */
  const int64_t oldest = max((int64_t)0, position - p.capacity);
  const int64_t first = p.window ? max(oldest, token - p.window + 1) : oldest;

  float q[PIECES], o[PIECES] = {}, largest = -INFINITY, sum = 0;
  const int64_t q_offset = (row * p.heads + head) * p.D;
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++) {
    const int channel = piece * 32 + lane;
    q[piece] = channel < p.D ? load(p.q + q_offset + channel) * p.power_scale : 0;
  }
  for (int64_t start = first + warp * RUN; start <= token; start += WARPS * RUN) {
    float score[RUN] = {}, v[RUN][PIECES];
#pragma unroll
    for (int i = 0; i < RUN; i++) {
      const int64_t key = min(start + i, token); /* read again beyond the last */
      const bool given = key >= position;
      const int64_t key_row = given ? batch * p.length + key - position : batch * p.capacity + key % p.capacity;
      const int64_t offset = (key_row * p.key_heads + key_head) * p.D;
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++) {
        const int channel = piece * 32 + lane;
        v[i][piece] = 0;
        if (channel >= p.D) continue;
        const float k = given ? load(p.k + offset + channel) : p.cache_k[offset + channel];
        v[i][piece] = given ? load(p.v + offset + channel) : p.cache_v[offset + channel];
        score[i] += q[piece] * k;
      }
    }
    float top = largest;
#pragma unroll
    for (int i = 0; i < RUN; i++) {
      score[i] = warp_sum(score[i]);
      if (start + i > token) score[i] = -INFINITY;
      top = fmaxf(top, score[i]);
    }
    const float shrink = exp2f(largest - top);
    largest = top;
    sum *= shrink;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) o[piece] *= shrink;
#pragma unroll
    for (int i = 0; i < RUN; i++) {
      const float weight = exp2f(score[i] - largest);
      sum += weight;
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++) o[piece] += weight * v[i][piece];
    }
  }

  if (!lane) {
    largest_of[warp] = largest;
    sum_of[warp] = sum;
  }
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++) o_of[warp][piece * 32 + lane] = o[piece];
  __syncthreads();
  if (threadIdx.x >= p.D) return;
  float top = -INFINITY, total = 0, result = 0;
  for (int i = 0; i < WARPS; i++) top = fmaxf(top, largest_of[i]);
  for (int i = 0; i < WARPS; i++) {
    const float share = exp2f(largest_of[i] - top); /* 0 where a warp had no key */
    total += share * sum_of[i];
    result += share * o_of[i][threadIdx.x];
  }
  store(p.o + q_offset + threadIdx.x, result / total);
}

/* ring (B,capacity,width) = cache with the last tokens of `given` (B,T,width) in their rows; in place, as in a decoder, these rows alone
 * are written. */
template <class T>
static void keep(const problem<T> &p, int64_t batch, const float *cache, const T *given, float *ring) {
  const int64_t width = p.key_heads * p.D, capacity = p.capacity, length = p.length;
  const int32_t *position = p.position;
  if (ring == cache) {
    const int64_t rows = length < capacity ? length : capacity;
    comba_each(batch * rows * width, [=] __device__(int64_t i) {
      const int64_t b = i / width / rows, token = length - rows + i / width % rows;
      ring[(b * capacity + (*position + token) % capacity) * width + i % width] =
          load(given + (b * length + token) * width + i % width);
    });
    return;
  }
  comba_each(batch * capacity * width, [=] __device__(int64_t i) {
    const int64_t b = i / width / capacity, row = i / width % capacity;
    /* new tokens of this row: the first of them, and the last, one in `capacity` between */
    const int64_t first = (row + capacity - *position % capacity) % capacity;
    const int64_t last = first + (length - 1 - first) / capacity * capacity;
    ring[i] = first < length ? load(given + (b * length + last) * width + i % width) : cache[i];
  });
}

static comba_status infer(comba_signature *s) {
  const int64_t D = s->input[Q].size[3];
  if (D > D_MAX)
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: heads of %lld channels, expected at most %d on a GPU", s->op,
                      (long long)D, D_MAX);
  s->forward_workspace = 0;
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const comba_attention_attributes *attributes = (const comba_attention_attributes *)call->attributes;
  const comba_shape *q = &call->input[Q].shape;
  problem<T> p = {};
  p.length = q->size[1];
  p.heads = q->size[2];
  p.key_heads = call->input[KEY].shape.size[2];
  p.D = q->size[3];
  p.capacity = call->input[CACHE_K].shape.size[1];
  p.window = attributes->window;
  p.power_scale = (float)((attributes->scale != 0 ? attributes->scale : 1 / sqrt((double)p.D)) * 1.4426950408889634);
  p.q = (const T *)call->input[Q].data;
  p.k = (const T *)call->input[KEY].data;
  p.v = (const T *)call->input[VALUE].data;
  p.cache_k = (const float *)call->input[CACHE_K].data;
  p.cache_v = (const float *)call->input[CACHE_V].data;
  p.position = (const int32_t *)call->input[POSITION].data;
  p.o = (T *)call->output[O].data;
  const unsigned blocks = (unsigned)(q->size[0] * p.length * p.heads), threads = WARPS * 32;
  if (p.D <= 32)
    attend<T, 1><<<blocks, threads, 0, comba_cuda_stream()>>>(p);
  else if (p.D <= 64)
    attend<T, 2><<<blocks, threads, 0, comba_cuda_stream()>>>(p);
  else if (p.D <= 128)
    attend<T, 4><<<blocks, threads, 0, comba_cuda_stream()>>>(p);
  else
    attend<T, 8><<<blocks, threads, 0, comba_cuda_stream()>>>(p);
  comba_cuda_note(cudaGetLastError(), "attention of new tokens");
  keep(p, q->size[0], p.cache_k, p.k, (float *)call->output[NEW_CACHE_K].data);
  keep(p, q->size[0], p.cache_v, p.v, (float *)call->output[NEW_CACHE_V].data);
}

COMBA_CUDA_ROW_FORWARD(attention_decode, infer);
