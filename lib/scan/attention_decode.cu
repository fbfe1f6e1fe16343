/* Causal attention of T new tokens against themselves and a ring of the keys and values before them; then the last new tokens are written into
 * the ring. Forward alone. A block has one new token and query head. */
#include "scan/cuda_attention_decode.h"

enum { Q, KEY, VALUE, CACHE_K, CACHE_V, POSITION };
enum { O, NEW_CACHE_K, NEW_CACHE_V };
enum { WARPS = 16 };

template <class T, int PIECES> static __global__ void attend_block(const attention_tokens p) {
  __shared__ attention_room<PIECES, WARPS> room;
  const int64_t head = blockIdx.x % p.heads, row = blockIdx.x / p.heads; /* row: in (B T) */
  put_part(&room, attend<T, PIECES>(p, row, head, threadIdx.x / 32, WARPS), threadIdx.x / 32);
  __syncthreads();
  if (threadIdx.x >= p.D) return;
  store((T *)p.o + blockIdx.x * p.D + threadIdx.x, join_parts(room, 0, WARPS, threadIdx.x));
}

/* ring (B,capacity,width) = cache with the last tokens of `given` (B,T,width) in their rows; in place, as in a decoder, these rows alone
 * are written. */
template <class T> static void keep(const attention_tokens &p, const float *cache, const T *given, float *ring) {
  const int64_t batch = p.batch, width = p.key_heads * p.D, capacity = p.capacity, length = p.length;
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
  if (D > ATTENTION_TOKEN_CHANNELS)
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: heads of %lld channels, expected at most %d on a GPU", s->op,
                      (long long)D, ATTENTION_TOKEN_CHANNELS);
  s->forward_workspace = 0;
  return COMBA_OK;
}

attention_tokens cuda_attention_decode_of(const comba_call *call) {
  const comba_attention_attributes *attributes = (const comba_attention_attributes *)call->attributes;
  const comba_shape *q = &call->input[Q].shape;
  attention_tokens p = {};
  p.batch = q->size[0];
  p.length = q->size[1];
  p.heads = q->size[2];
  p.key_heads = call->input[KEY].shape.size[2];
  p.D = q->size[3];
  p.capacity = call->input[CACHE_K].shape.size[1];
  p.window = attributes->window;
  p.power_scale = (float)((attributes->scale != 0 ? attributes->scale : 1 / sqrt((double)p.D)) * 1.4426950408889634);
  p.q = call->input[Q].data;
  p.k = call->input[KEY].data;
  p.v = call->input[VALUE].data;
  p.cache_k = (const float *)call->input[CACHE_K].data;
  p.cache_v = (const float *)call->input[CACHE_V].data;
  p.position = (const int32_t *)call->input[POSITION].data;
  p.o = call->output[O].data;
  p.new_cache_k = (float *)call->output[NEW_CACHE_K].data;
  p.new_cache_v = (float *)call->output[NEW_CACHE_V].data;
  return p;
}

template <class T> static void forward(const comba_call *call) {
  const attention_tokens p = cuda_attention_decode_of(call);
  const unsigned blocks = (unsigned)(p.batch * p.length * p.heads), threads = WARPS * 32;
  if (p.D <= 32)
    attend_block<T, 1><<<blocks, threads, 0, comba_cuda_stream()>>>(p);
  else if (p.D <= 64)
    attend_block<T, 2><<<blocks, threads, 0, comba_cuda_stream()>>>(p);
  else if (p.D <= 128)
    attend_block<T, 4><<<blocks, threads, 0, comba_cuda_stream()>>>(p);
  else
    attend_block<T, 8><<<blocks, threads, 0, comba_cuda_stream()>>>(p);
  comba_cuda_note(cudaGetLastError(), "attention of new tokens");
  keep(p, p.cache_k, (const T *)p.k, p.new_cache_k);
  keep(p, p.cache_v, (const T *)p.v, p.new_cache_v);
}

COMBA_CUDA_ROW_FORWARD(attention_decode, infer);
