/* w (B,N) = softmax over n of scores (B,N,1);  y (B,d) = sum over n of w[b, n] x[b, n]
 * dx[b, n] = w[b, n] dy[b];  dscores[b, n] = w[b, n] dy[b] . (x[b, n] - y[b])
 *
 * The softmax takes a block a sample, the sum a thread a channel, the gradients a warp a token. Saved: w. */
#include "ops/cuda_rows.h"

enum { X, SCORES };
enum { WEIGHTS };
enum { THREADS = 256 };

template <class T> static __global__ void softmax(const T *scores, int64_t tokens, float *weights) {
  scores += blockIdx.x * tokens;
  weights += blockIdx.x * tokens;
  float largest = -INFINITY, sum = 0;
  for (int64_t n = threadIdx.x; n < tokens; n += THREADS) largest = fmaxf(largest, load(scores + n));
  largest = block_max(largest);
  for (int64_t n = threadIdx.x; n < tokens; n += THREADS) sum += expf(load(scores + n) - largest);
  sum = block_sum(sum);
  for (int64_t n = threadIdx.x; n < tokens; n += THREADS) weights[n] = expf(load(scores + n) - largest) / sum;
}

template <class T> static void forward(const comba_call *call) {
  const int64_t *size = call->input[X].shape.size;
  const int64_t batch = size[0], tokens = size[1], d = size[2];
  const T *x = (const T *)call->input[X].data;
  T *y = (T *)call->output[0].data;
  float *weights = (float *)(call->saved[WEIGHTS].data ? call->saved[WEIGHTS].data : call->workspace);
  softmax<<<(unsigned)batch, THREADS, 0, comba_cuda_stream()>>>((const T *)call->input[SCORES].data, tokens, weights);
  comba_cuda_note(cudaGetLastError(), "sequence_pool");
  comba_each(batch * d, [=] __device__(int64_t i) {
    const int64_t first = i / d * tokens;
    float sum = 0;
    for (int64_t n = first; n < first + tokens; n++) sum += weights[n] * load(x + n * d + i % d);
    store(y + i, sum);
  });
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 2, 0)) return;
  const int64_t *size = call->input[X].shape.size;
  const int64_t tokens = size[1], d = size[2];
  const T *x = (const T *)call->input[X].data, *y = (const T *)call->output[0].data;
  const T *dy = (const T *)call->output_gradient[0].data;
  const float *weights = (const float *)call->saved[WEIGHTS].data;
  T *dx = (T *)call->input_gradient[X].data, *dscores = (T *)call->input_gradient[SCORES].data;
  const bool add_x = call->accumulate[X], add_scores = call->accumulate[SCORES];
  comba_each_row(size[0] * tokens, [=] __device__(int64_t token, int64_t lane) {
    const T *in = x + token * d, *gradient = dy + token / tokens * d, *pooled = y + token / tokens * d;
    const float weight = weights[token];
    if (dscores) {
      const float product =
          warp_sum_of(d, lane, [=](int64_t j) { return load(gradient + j) * (load(in + j) - load(pooled + j)); });
      if (!lane) put(dscores + token, weight * product, add_scores);
    }
    if (dx)
      for (int64_t j = lane; j < d; j += 32) put(dx + token * d + j, weight * load(gradient + j), add_x);
  });
}

COMBA_CUDA_ROW(sequence_pool);
