/* The recurrence of cuda_scalar.h token by token, for sequences of a few tokens (decoding): a block has 32 value channels of a sequence
 * and head, a warp a row of threads over those channels, and every eighth key channel of the state is a thread's. */
#include "scan/cuda_scalar_private.h"

enum { CHANNELS = 32, PARTS = 8, MOST = CUDA_SCALAR_KEYS / PARTS };

/* The sum over the parts, in each of them. */
static __device__ float sum_parts(float value) {
  __shared__ float part[PARTS][CHANNELS];
  __syncthreads();
  part[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < PARTS; i++) sum += part[i][threadIdx.x];
  return sum;
}

template <class T> static __global__ void __launch_bounds__(CHANNELS *PARTS, 1) recur(const cuda_scalar c) {
  const int64_t K = c.K, V = c.V, blocks = (V + CHANNELS - 1) / CHANNELS, task = blockIdx.x / blocks;
  const int64_t sequence = task / c.heads, head = task % c.heads;
  const int64_t channel = blockIdx.x % blocks * CHANNELS + threadIdx.x;
  const bool there = channel < V;
  const int64_t start = c.cu_seqlens ? c.cu_seqlens[sequence] : sequence * c.length;
  const int64_t end = c.cu_seqlens ? c.cu_seqlens[sequence + 1] : start + c.length;
  const int64_t q_head = head / (c.heads / c.q_heads), k_head = head / (c.heads / c.k_heads);
  const int64_t v_head = head / (c.heads / c.v_heads), outside = task * K * V + channel;
  const double constant = c.retention ? log1p(-exp2(-(double)c.retention - (double)head)) : 0;
  float state[MOST];
#pragma unroll
  for (int i = 0; i < MOST; i++) {
    const int64_t k = i * PARTS + threadIdx.y;
    state[i] = there && c.initial_state && k < K ? c.initial_state[outside + k * V] : 0;
  }
  for (int64_t row = start; row < end; row++) {
    const T *q = (const T *)c.q + (row * c.q_heads + q_head) * K, *k = (const T *)c.k + (row * c.k_heads + k_head) * K;
    const T *p = c.p ? (const T *)c.p + (row * c.k_heads + k_head) * K : k;
    const int64_t gate = row * c.heads + head;
    const float decay_ = decay(c.g ? c.g[gate] : constant);
    float value = there ? load((const T *)c.v + (row * c.v_heads + v_head) * V + channel) : 0;
    if (c.delta) {
      float read = 0;
#pragma unroll
      for (int i = 0; i < MOST; i++)
        if (i * PARTS + threadIdx.y < K) read += state[i] * load(p + i * PARTS + threadIdx.y);
      value = c.beta[gate] * (value - (c.after_decay ? decay_ : 1) * sum_parts(read));
    }
    float output = 0;
#pragma unroll
    for (int i = 0; i < MOST; i++)
      if (i * PARTS + threadIdx.y < K) {
        state[i] = decay_ * state[i] + load(k + i * PARTS + threadIdx.y) * value;
        output += state[i] * load(q + i * PARTS + threadIdx.y);
      }
    output = sum_parts(output);
    if (there && !threadIdx.y) store((T *)c.o + (row * c.heads + head) * V + channel, c.scale * output);
  }
  if (!there || !c.final_state) return;
#pragma unroll
  for (int i = 0; i < MOST; i++) {
    const int64_t k = i * PARTS + threadIdx.y;
    if (k < K) c.final_state[outside + k * V] = state[i];
  }
}

template <class T> void cuda_scalar_decode(const cuda_scalar *c) {
  const int64_t sequences = c->cu_seqlens ? c->sequences : c->batch;
  const int64_t blocks = sequences * c->heads * ((c->V + CHANNELS - 1) / CHANNELS);
  recur<T><<<(unsigned)blocks, dim3(CHANNELS, PARTS), 0, comba_cuda_stream()>>>(*c);
  comba_cuda_note(cudaGetLastError(), "the scan token by token");
}

template void cuda_scalar_decode<float>(const cuda_scalar *);
template void cuda_scalar_decode<bfloat16>(const cuda_scalar *);
