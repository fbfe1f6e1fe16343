/* The mean cross entropy of rows of logits and its gradient, as cross_entropy.c has them. A block a row. */
#include "core/cuda_packet.h"

enum { LOGITS, TARGETS, WEIGHTS };
enum { LOSS, ROWS };
enum { THREADS = 256, ROUND = 4, SUMMING = 1024 };

static comba_status infer(comba_signature *s) {
  s->forward_workspace = comba_shape_elements(&s->output[ROWS]); /* weighted, smoothed losses */
  s->backward_workspace = 1;
  return COMBA_OK;
}

/* Calls f(j, values) for the packets at columns j of a row that are this thread's, ROUND of them read before the first is worked on */
template <int N, class T, class F> static __device__ void each_packet(const T *row, int64_t classes, F f) {
  for (int64_t start = threadIdx.x * N; start < classes; start += ROUND * THREADS * N) {
    unread<T, N> x[ROUND];
#pragma unroll
    for (int k = 0; k < ROUND; k++) x[k].load(start + k * THREADS * N < classes, row + start + k * THREADS * N);
#pragma unroll
    for (int k = 0; k < ROUND; k++)
      if (start + k * THREADS * N < classes) f(start + k * THREADS * N, x[k].read());
  }
}

template <int N, class T>
static __global__ void row_loss(const T *logits, const int32_t *targets, const float *weights, int64_t classes,
                                float smoothing, float *losses, float *weighted, float *saved) {
  const int64_t row = blockIdx.x;
  const int32_t target = targets[row];
  if (target < 0) {
    if (!threadIdx.x) losses[row] = weighted[row] = 0;
    return;
  }
  const T *x = logits + row * classes;
  /* of what the thread has seen: the largest, the sum of e^(x - largest), and that of x - x[0] */
  float largest = -INFINITY, sum = 0, beyond = 0;
  const float start = load(x);
  each_packet<N>(x, classes, [&](int64_t, const packet<T, N> &values) {
    float most = values[0];
#pragma unroll
    for (int i = 1; i < N; i++) most = fmaxf(most, values[i]);
    if (most > largest) {
      sum *= __expf(largest - most);
      largest = most;
    }
    if (most > -INFINITY || isnan(most))
#pragma unroll
      for (int i = 0; i < N; i++) sum += __expf(values[i] - largest);
    if (smoothing != 0)
#pragma unroll
      for (int i = 0; i < N; i++) beyond += values[i] - start;
  });
  const float own = largest;
  largest = block_max(largest);
  sum = block_sum(own > -INFINITY ? sum * __expf(own - largest) : sum);
  const float below = smoothing == 0 ? 0 : block_sum(beyond) + (float)classes * (start - largest);
  if (threadIdx.x) return;
  const float log_sum = logf(sum), loss = log_sum - (load(x + target) - largest);
  losses[row] = loss;
  weighted[row] = (weights ? weights[target] : 1) *
                  (smoothing == 0 ? loss : (1 - smoothing) * loss + smoothing * (log_sum - below / (float)classes));
  if (!saved) return;
  saved[2 * row] = largest;
  saved[2 * row + 1] = 1 / sum;
}

static __device__ double block_sum_double(double value) {
  __shared__ double part[SUMMING];
  part[threadIdx.x] = value;
  __syncthreads();
  for (int half = SUMMING / 2; half; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  return part[0];
}

static __device__ double weight_sum(const int32_t *targets, const float *weights, int64_t rows) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < rows; i += SUMMING)
    if (targets[i] >= 0) sum += weights ? weights[targets[i]] : 1;
  return block_sum_double(sum);
}

static __global__ void mean_loss(const float *weighted, const int32_t *targets, const float *weights, int64_t rows,
                                 float *loss) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < rows; i += SUMMING) sum += weighted[i];
  const double all = weight_sum(targets, weights, rows);
  __syncthreads();
  sum = block_sum_double(sum);
  if (!threadIdx.x) *loss = all > 0 ? (float)(sum / all) : 0;
}

/* scale (1) = dloss / the sum of the weights */
static __global__ void gradient_scale(const float *dloss, const int32_t *targets, const float *weights, int64_t rows,
                                      float *scale) {
  const double all = weight_sum(targets, weights, rows);
  if (!threadIdx.x) *scale = all > 0 ? (float)(*dloss / all) : 0;
}

template <int N, class T>
static __global__ void row_gradient(const T *logits, const int32_t *targets, const float *weights, int64_t rows,
                                    int64_t classes, float smoothing, float l2_warp, const float *saved,
                                    const float *scale, const float *dloss, T *gradient, bool accumulate) {
  const int64_t row = blockIdx.x, at = row * classes;
  const int32_t target = targets[row];
  const T *x = logits + at;
  T *dx = gradient + at;
  float largest = -INFINITY;
  __shared__ unsigned first; /* of the entries that equal the largest */
  if (l2_warp > 0) {
    if (!threadIdx.x) first = ~0u;
    for (int64_t j = threadIdx.x; j < classes; j += THREADS) largest = fmaxf(largest, load(x + j));
    largest = block_max(largest);
    for (int64_t j = threadIdx.x; j < classes; j += THREADS)
      if (load(x + j) == largest) atomicMin(&first, (unsigned)j);
    __syncthreads();
  }
  const float own = target < 0 ? 0 : *scale * (weights ? weights[target] : 1), every = own * smoothing / (float)classes;
  const float top = target < 0 ? 0 : saved[2 * row], factor = target < 0 ? 0 : own * saved[2 * row + 1];
  each_packet<N>(x, classes, [&](int64_t j, const packet<T, N> &values) {
    float result[N];
#pragma unroll
    for (int i = 0; i < N; i++) result[i] = target < 0 ? 0 : factor * __expf(values[i] - top) - every;
    if (target >= j && target < j + N)
#pragma unroll
      for (int i = 0; i < N; i++)
        if (j + i == target) result[i] -= own * (1 - smoothing);
    if (l2_warp > 0)
#pragma unroll
      for (int i = 0; i < N; i++)
        if (j + i == first) result[i] += l2_warp * *dloss / (float)rows * largest;
    put_packet<N>(dx + j, result, accumulate);
  });
}

template <class T> static void forward(const comba_call *call) {
  const comba_cross_entropy_attributes *a = (const comba_cross_entropy_attributes *)call->attributes;
  const comba_shape *shape = &call->input[LOGITS].shape;
  const int64_t classes = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / classes;
  const int32_t *targets = (const int32_t *)call->input[TARGETS].data;
  const float *weights = (const float *)call->input[WEIGHTS].data;
  float *weighted = (float *)call->workspace;
  const T *logits = (const T *)call->input[LOGITS].data;
  const auto kernel = classes % 8 == 0 && comba_cuda_aligned(logits, 16) ? row_loss<8, T> : row_loss<1, T>;
  kernel<<<(unsigned)rows, THREADS, 0, comba_cuda_stream()>>>(
      logits, targets, weights, classes, (float)a->label_smoothing, (float *)call->output[ROWS].data, weighted,
      (float *)call->saved[0].data);
  mean_loss<<<1, SUMMING, 0, comba_cuda_stream()>>>(weighted, targets, weights, rows, (float *)call->output[LOSS].data);
  comba_cuda_note(cudaGetLastError(), "cross_entropy");
}

template <class T> static void backward(const comba_call *call) {
  const comba_cross_entropy_attributes *a = (const comba_cross_entropy_attributes *)call->attributes;
  const comba_shape *shape = &call->input[LOGITS].shape;
  const int64_t classes = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / classes;
  const int32_t *targets = (const int32_t *)call->input[TARGETS].data;
  const float *weights = (const float *)call->input[WEIGHTS].data;
  const float *dloss = (const float *)call->output_gradient[LOSS].data;
  float *scale = (float *)call->workspace;
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[LOGITS].data) return;
  gradient_scale<<<1, SUMMING, 0, comba_cuda_stream()>>>(dloss, targets, weights, rows, scale);
  const T *logits = (const T *)call->input[LOGITS].data;
  T *gradient = (T *)call->input_gradient[LOGITS].data;
  const bool packs = classes % 8 == 0 && comba_cuda_aligned(logits, 16) && comba_cuda_aligned(gradient, 16);
  const auto kernel = packs ? row_gradient<8, T> : row_gradient<1, T>;
  kernel<<<(unsigned)rows, THREADS, 0, comba_cuda_stream()>>>(
      logits, targets, weights, rows, classes, (float)a->label_smoothing, (float)a->l2_warp,
      (const float *)call->saved[0].data, scale, dloss, gradient, call->accumulate[LOGITS]);
  comba_cuda_note(cudaGetLastError(), "cross_entropy, backward");
}

COMBA_CUDA_ROW(cross_entropy, infer);
