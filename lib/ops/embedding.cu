/* y[t] = weight[ids[t]];  dweight[ids[t]] += dy[t], except for the padding row */
#include "core/cuda_packet.h"

enum { IDS, WEIGHT };

/* y (tokens, d) = the rows of the weight that `ids` names, N values a thread; blocks of columns follow one another */
template <int N, class T> static __global__ void copy_rows(const int32_t *ids, const T *weight, int64_t d, T *y) {
  const int64_t t = blockIdx.x, from = ids[t] * d;
  for (int64_t j = threadIdx.x * N; j < d; j += blockDim.x * N)
    store_packet(y + t * d + j, load_packet<N>(weight + from + j));
}

template <class T> static void forward(const comba_call *call) {
  const int64_t tokens = comba_shape_elements(&call->input[IDS].shape), d = call->input[WEIGHT].shape.size[1];
  const int32_t *ids = (const int32_t *)call->input[IDS].data;
  const T *weight = comba_cuda_weight<T>(call->input[WEIGHT].data);
  T *y = (T *)call->output[0].data;
  const bool packs = d % 8 == 0 && comba_cuda_aligned(weight, 16) && comba_cuda_aligned(y, 16);
  const auto kernel = packs ? copy_rows<8, T> : copy_rows<1, T>;
  kernel<<<(unsigned)tokens, 128, 0, comba_cuda_stream()>>>(ids, weight, d, y);
  comba_cuda_note(cudaGetLastError(), "embedding");
}

/* next[t]: the next token after t with the same id, or `tokens`; found by the block of that token */
static __global__ void chain(const int32_t *ids, int64_t tokens, int32_t *next, int32_t *is_first) {
  __shared__ int32_t found;
  const int64_t t = blockIdx.x;
  const int32_t id = ids[t];
  if (!threadIdx.x) found = (int32_t)tokens;
  __syncthreads();
  for (int64_t start = t + 1; start < tokens; start += blockDim.x) {
    const int64_t other = start + threadIdx.x;
    if (other < tokens && ids[other] == id) atomicMin(&found, (int32_t)other);
    __syncthreads();
    if (found < tokens) break;
    __syncthreads();
  }
  if (!threadIdx.x) {
    next[t] = found;
    if (found < tokens) is_first[found] = 0;
  }
}

/* The block of an id's first token walks the chain: each element's sum runs in the order of the tokens. */
template <class T>
static __global__ void add_rows(const int32_t *ids, const T *dy, const int32_t *next, const int32_t *is_first,
                                int64_t tokens, int64_t d, int64_t padding_plus_one, float *dweight) {
  const int64_t first = blockIdx.x, id = ids[first];
  if (!is_first[first] || id + 1 == padding_plus_one) return;
  for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
    float sum = 0;
    for (int64_t t = first; t < tokens; t = next[t]) sum += load(dy + t * d + j);
    dweight[id * d + j] += sum;
  }
}

static comba_status infer(comba_signature *s) {
  s->backward_workspace = 2 * comba_shape_elements(&s->input[IDS]);
  return COMBA_OK;
}

template <class T> static void backward(const comba_call *call) {
  const comba_embedding_attributes *attributes = (const comba_embedding_attributes *)call->attributes;
  const int64_t tokens = comba_shape_elements(&call->input[IDS].shape), d = call->input[WEIGHT].shape.size[1];
  const int32_t *ids = (const int32_t *)call->input[IDS].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data;
  int32_t *next = (int32_t *)call->workspace, *is_first = next + tokens;
  if (comba_cuda_gradient_absent<T>(call, 2, 1u << WEIGHT) || !dweight) return;
  if (!call->accumulate[WEIGHT])
    comba_cuda_zero(dweight, (size_t)comba_shape_elements(&call->input[WEIGHT].shape) * sizeof(float));
  comba_each(tokens, [=] __device__(int64_t t) { is_first[t] = 1; });
  chain<<<(unsigned)tokens, 128, 0, comba_cuda_stream()>>>(ids, tokens, next, is_first);
  add_rows<<<(unsigned)tokens, 256, 0, comba_cuda_stream()>>>(
      ids, (const T *)call->output_gradient[0].data, next, is_first, tokens, d, attributes->padding_plus_one, dweight);
  comba_cuda_note(cudaGetLastError(), "embedding");
}

COMBA_CUDA_ROW(embedding, infer);
