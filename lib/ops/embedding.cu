/* y[t] = weight[ids[t]], rest[t] = weight[ids[t]] - y[t];  dweight[ids[t]] += dy[t], except for the padding row */
#include "core/cuda_packet.h"

enum { IDS, WEIGHT };
enum { Y, REST };

/* y (tokens, d) = the rows of the weight that `ids` names, N values a thread; blocks of columns follow one another */
template <int N, class T> static __global__ void copy_rows(const int32_t *ids, const T *weight, int64_t d, T *y) {
  const int64_t t = blockIdx.x, from = ids[t] * d;
  for (int64_t j = threadIdx.x * N; j < d; j += blockDim.x * N)
    store_packet(y + t * d + j, load_packet<N>(weight + from + j));
}

/* and rest, from the weight as it is */
template <int N, class T>
static __global__ void split_rows(const int32_t *ids, const float *weight, int64_t d, T *y, T *rest) {
  const int64_t t = blockIdx.x, from = ids[t] * d;
  for (int64_t j = threadIdx.x * N; j < d; j += blockDim.x * N) {
    const packet<float, N> value = load_packet<N>(weight + from + j);
    packet<T, N> rounded, left;
#pragma unroll
    for (int i = 0; i < N; i++) {
      rounded.set(i, value[i]);
      left.set(i, value[i] - rounded[i]);
    }
    store_packet(y + t * d + j, rounded);
    store_packet(rest + t * d + j, left);
  }
}

template <class T> static void forward(const comba_call *call) {
  const int64_t tokens = comba_shape_elements(&call->input[IDS].shape), d = call->input[WEIGHT].shape.size[1];
  const int32_t *ids = (const int32_t *)call->input[IDS].data;
  const T *weight = comba_cuda_weight<T>(call->input[WEIGHT].data);
  T *y = (T *)call->output[Y].data, *rest = (T *)call->output[REST].data;
  if (rest) {
    const float *whole = (const float *)call->input[WEIGHT].data;
    const bool packs =
        d % 8 == 0 && comba_cuda_aligned(whole, 16) && comba_cuda_aligned(y, 16) && comba_cuda_aligned(rest, 16);
    const auto kernel = packs ? split_rows<8, T> : split_rows<1, T>;
    kernel<<<(unsigned)tokens, 128, 0, comba_cuda_stream()>>>(ids, whole, d, y, rest);
    comba_cuda_note(cudaGetLastError(), "embedding");
    return;
  }
  const bool packs = d % 8 == 0 && comba_cuda_aligned(weight, 16) && comba_cuda_aligned(y, 16);
  const auto kernel = packs ? copy_rows<8, T> : copy_rows<1, T>;
  kernel<<<(unsigned)tokens, 128, 0, comba_cuda_stream()>>>(ids, weight, d, y);
  comba_cuda_note(cudaGetLastError(), "embedding");
}

/* start (ids + 1): for each id the sum of the counts before it. One block; a thread has a piece of the ids. */
enum { STARTING = 1024 };
static __global__ void find_starts(const int32_t *count, int64_t ids, int32_t *start) {
  __shared__ int32_t upto[STARTING];
  const int64_t piece = (ids + STARTING - 1) / STARTING, first = min(threadIdx.x * piece, ids);
  const int64_t end = min(first + piece, ids);
  int32_t sum = 0;
  for (int64_t id = first; id < end; id++) sum += count[id];
  upto[threadIdx.x] = sum;
  __syncthreads();
  for (int reach = 1; reach < STARTING; reach *= 2) {
    const int32_t before = threadIdx.x >= reach ? upto[threadIdx.x - reach] : 0;
    __syncthreads();
    upto[threadIdx.x] += before;
    __syncthreads();
  }
  int32_t at = upto[threadIdx.x] - sum;
  for (int64_t id = first; id < end; id++) {
    start[id] = at;
    at += count[id];
  }
  if (threadIdx.x == STARTING - 1) start[ids] = at;
}

/* The block of an id's first slot adds up the rows of its tokens, `sorted` from start[id] to start[id + 1], in their order. */
template <int N, class T>
static __global__ void add_rows(const int32_t *ids, const T *dy, const int32_t *sorted, const int32_t *start,
                                int64_t vocabulary, int64_t d, float *dweight) {
  enum { AHEAD = 8 };
  const int32_t slot = (int32_t)blockIdx.x;
  if (slot >= start[vocabulary]) return;
  const int64_t id = ids[sorted[slot]];
  if (slot != start[id]) return;
  const int32_t end = start[id + 1];
  for (int64_t j = threadIdx.x * N; j < d; j += blockDim.x * N) {
    float sum[N] = {};
    for (int32_t now = slot; now < end; now += AHEAD) {
      unread<T, N> row[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; k++) row[k].load(now + k < end, dy + (int64_t)sorted[min(now + k, end - 1)] * d + j);
#pragma unroll
      for (int k = 0; k < AHEAD; k++)
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += row[k].read()[i];
    }
    put_packet<N>(dweight + id * d + j, sum, true);
  }
}

static comba_status infer(comba_signature *s) {
  s->backward_workspace = 2 * s->input[WEIGHT].size[0] + 1 + 2 * comba_shape_elements(&s->input[IDS]);
  return COMBA_OK;
}

/* Tokens are sorted by id. The atomics count whole numbers; the places that they give out differ from run to run, but not the order within
 * an id, for there a token goes behind those of its list that come before it. */
template <class T> static void backward(const comba_call *call) {
  const comba_embedding_attributes *attributes = (const comba_embedding_attributes *)call->attributes;
  const int64_t tokens = comba_shape_elements(&call->input[IDS].shape), d = call->input[WEIGHT].shape.size[1];
  const int64_t vocabulary = call->input[WEIGHT].shape.size[0], padding = attributes->padding_plus_one - 1;
  const int32_t *ids = (const int32_t *)call->input[IDS].data;
  const T *dy = (const T *)call->output_gradient[Y].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data;
  int32_t *count = (int32_t *)call->workspace, *start = count + vocabulary;
  int32_t *list = start + vocabulary + 1, *sorted = list + tokens; /* (tokens) each */
  if (comba_cuda_gradient_absent<T>(call, 2, 1u << WEIGHT) || !dweight) return;
  if (!call->accumulate[WEIGHT])
    comba_cuda_zero(dweight, (size_t)comba_shape_elements(&call->input[WEIGHT].shape) * sizeof(float));
  comba_cuda_zero(count, (size_t)vocabulary * sizeof *count);
  comba_each(tokens, [=] __device__(int64_t t) {
    if (ids[t] != padding) atomicAdd(count + ids[t], 1);
  });
  find_starts<<<1, STARTING, 0, comba_cuda_stream()>>>(count, vocabulary, start);
  comba_each(tokens, [=] __device__(int64_t t) {
    if (ids[t] != padding) list[start[ids[t]] + atomicAdd(count + ids[t], -1) - 1] = (int32_t)t;
  });
  comba_each(tokens, [=] __device__(int64_t t) {
    if (ids[t] == padding) return;
    const int32_t first = start[ids[t]], end = start[ids[t] + 1];
    int32_t before = 0;
    for (int32_t i = first; i < end; i++) before += list[i] < t;
    sorted[first + before] = (int32_t)t;
  });
  const bool packs = d % 8 == 0 && comba_cuda_aligned(dy, 16) && comba_cuda_aligned(dweight, 16);
  const auto kernel = packs ? add_rows<8, T> : add_rows<1, T>;
  kernel<<<(unsigned)tokens, 128, 0, comba_cuda_stream()>>>(ids, dy, sorted, start, vocabulary, d, dweight);
  comba_cuda_note(cudaGetLastError(), "embedding, backward");
}

COMBA_CUDA_ROW(embedding, infer);
