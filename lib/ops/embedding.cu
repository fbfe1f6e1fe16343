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

/* The sum of `value` over the lanes up to the own one */
static __device__ int32_t sum_upto(int32_t value) {
  const int lane = threadIdx.x % 32;
  for (int reach = 1; reach < 32; reach *= 2) {
    const int32_t before = __shfl_sync(~0u, value, lane - reach);
    if (lane >= reach) value += before;
  }
  return value;
}

/* start (ids + 1): for each id the sum of the counts before it; ids: a multiple of FOUR. One block, a warp a stretch of ids of which its
 * lanes read neighbours. */
enum { STARTING = 1024, WARPS = STARTING / 32, FOUR = 4, ROUNDS = 8, STRETCH = 32 * FOUR * ROUNDS };
static __global__ void __launch_bounds__(STARTING) find_starts(const int32_t *count, int64_t ids, int32_t *start) {
  __shared__ int32_t stretch_sum[WARPS];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t before = 0; /* of the stretches of all warps */
  for (int64_t round = 0; round < ids; round += WARPS * STRETCH) {
    const int64_t first = round + warp * STRETCH + lane * FOUR;
    unread<int32_t, FOUR> counts[ROUNDS];
    int32_t at[ROUNDS], sum = 0;
#pragma unroll
    for (int k = 0; k < ROUNDS; k++) counts[k].load(first + k * 32 * FOUR < ids, count + first + k * 32 * FOUR);
#pragma unroll
    for (int k = 0; k < ROUNDS; k++) {
      const packet<int32_t, FOUR> four = counts[k].read();
      const int32_t own = four.at[0] + four.at[1] + four.at[2] + four.at[3], upto = sum_upto(own);
      at[k] = sum + upto - own;
      sum += __shfl_sync(~0u, upto, 31);
    }
    __syncthreads(); /* the sums of the round before have been read */
    if (!lane) stretch_sum[warp] = sum;
    __syncthreads();
    const int32_t stretches = sum_upto(stretch_sum[lane]);
    const int32_t here = before + __shfl_sync(~0u, stretches, warp) - sum;
    before += __shfl_sync(~0u, stretches, 31);
#pragma unroll
    for (int k = 0; k < ROUNDS; k++) {
      packet<int32_t, FOUR> four = counts[k].read();
      int32_t next = here + at[k];
      for (int i = 0; i < FOUR; i++) {
        const int32_t own = four.at[i];
        four.at[i] = next;
        next += own;
      }
      if (first + k * 32 * FOUR < ids) store_packet(start + first + k * 32 * FOUR, four);
    }
  }
  if (!threadIdx.x) start[ids] = before;
}

/* Rows of an id that a block adds up; of more than that each block leaves a part, and the last one adds up the parts in their order. */
enum { MOST_ROWS = 64 };
static __host__ __device__ int64_t parts_of(int64_t tokens) {
  return 2 * (tokens / MOST_ROWS + 1);
}
/* That of slots [slot, slot + MOST_ROWS): of those that begin in one stretch of MOST_ROWS, one at most is the first of its id, and one
 * at most is not. */
static __device__ int64_t part_of(int32_t slot, bool is_first) {
  return slot / MOST_ROWS * 2 + is_first;
}

/* Whether the block is the last of `blocks` that come here with this counter, which is 0 at first; it sees what the others wrote. */
static __device__ bool is_last(int32_t *counter, int32_t blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (!threadIdx.x) last = atomicAdd(counter, 1) == blocks - 1;
  __syncthreads();
  __threadfence();
  return last;
}

/* `sorted` has the tokens of an id in their order, from start[id] to start[id + 1]. A block adds up dy of those from its slot on, if this is
 * the first of the id or MOST_ROWS further. part (parts, d); arrived (ids): zero */
template <int N, class T>
static __global__ void __launch_bounds__(128, 16)
    add_rows(const int32_t *ids, const T *dy, const int32_t *sorted, const int32_t *start, int64_t vocabulary,
             int64_t d, float *part, int32_t *arrived, float *dweight) {
  enum { AHEAD = 16 / sizeof(T), M = N < 4 ? N : 4, PARTS_AHEAD = 4 };
  const int32_t slot = (int32_t)blockIdx.x;
  if (slot >= start[vocabulary]) return;
  const int64_t id = ids[sorted[slot]];
  const int32_t first = start[id], all = start[id + 1] - first;
  if ((slot - first) % MOST_ROWS) return;
  const int32_t end = min(first + all, slot + MOST_ROWS);
  const bool whole = all <= MOST_ROWS;
  float *to = whole ? dweight + id * d : part + part_of(slot, slot == first) * d;
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
    put_packet<N>(to + j, sum, whole);
  }
  if (whole || !is_last(arrived + id, (all + MOST_ROWS - 1) / MOST_ROWS)) return;
  for (int64_t j = threadIdx.x * M; j < d; j += blockDim.x * M) {
    float sum[M] = {};
    for (int32_t now = first; now < first + all; now += PARTS_AHEAD * MOST_ROWS) {
      unread<float, M> row[PARTS_AHEAD];
#pragma unroll
      for (int k = 0; k < PARTS_AHEAD; k++) {
        const int32_t own = now + k * MOST_ROWS;
        row[k].load(own < first + all, part + part_of(own, own == first) * d + j);
      }
#pragma unroll
      for (int k = 0; k < PARTS_AHEAD; k++)
#pragma unroll
        for (int i = 0; i < M; i++) sum[i] += row[k].read()[i];
    }
    put_packet<M>(dweight + id * d + j, sum, true);
  }
}

/* Where things lie in the workspace, in numbers of four bytes; all begin at multiples of 16 bytes. */
struct places {
  int64_t ids, start, part, list, sorted, end;

  places(int64_t tokens, int64_t vocabulary, int64_t d) {
    ids = (vocabulary + FOUR - 1) / FOUR * FOUR; /* counts lie first */
    start = ids;
    part = start + ids + FOUR;
    list = part + (parts_of(tokens) * d + FOUR - 1) / FOUR * FOUR;
    sorted = list + tokens;
    end = sorted + tokens;
  }
};

static comba_status infer(comba_signature *s) {
  const int64_t *weight = s->input[WEIGHT].size;
  s->backward_workspace = places(comba_shape_elements(&s->input[IDS]), weight[0], weight[1]).end;
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
  const places at(tokens, vocabulary, d);
  int32_t *count = (int32_t *)call->workspace, *start = count + at.start; /* (ids), (ids + 1) */
  int32_t *list = count + at.list, *sorted = count + at.sorted;           /* (tokens) */
  float *part = (float *)call->workspace + at.part;
  if (comba_cuda_gradient_absent<T>(call, 2, 1u << WEIGHT) || !dweight) return;
  if (!call->accumulate[WEIGHT])
    comba_cuda_zero(dweight, (size_t)comba_shape_elements(&call->input[WEIGHT].shape) * sizeof(float));
  comba_cuda_zero(count, (size_t)at.ids * sizeof *count);
  comba_each(tokens, [=] __device__(int64_t t) {
    if (ids[t] != padding) atomicAdd(count + ids[t], 1);
  });
  find_starts<<<1, STARTING, 0, comba_cuda_stream()>>>(count, at.ids, start);
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
  kernel<<<(unsigned)tokens, 128, 0, comba_cuda_stream()>>>(ids, dy, sorted, start, vocabulary, d, part, count,
                                                            dweight);
  comba_cuda_note(cudaGetLastError(), "embedding, backward");
}

COMBA_CUDA_ROW(embedding, infer);
