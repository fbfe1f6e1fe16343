/* norm = sqrt(sum of gradient^2 over all slabs); factor = 0 if it is not finite, else min(1, max_norm / norm), 1 if max_norm <= 0;
 * clip (2) = {norm, factor}. Squares are summed in double. */
#include "core/cuda_packet.h"

enum { SETTINGS, GRADIENT1, GRADIENT2 };
enum { BLOCKS = 528, THREADS = 256 };

static comba_status infer(comba_signature *s) {
  s->forward_workspace = 2 * 2 * BLOCKS; /* doubles */
  return COMBA_OK;
}

template <int SIZE> static __device__ double block_sum_double(double value) {
  __shared__ double part[SIZE];
  part[threadIdx.x] = value;
  __syncthreads();
  for (int half = SIZE / 2; half; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  return part[0];
}

/* Packets of N values, UNROLL of them read before the first is used */
template <int N> static __global__ void squares(const float *x, int64_t n, double *partial) {
  enum { UNROLL = 4 };
  double sum = 0;
  const int64_t step = (int64_t)BLOCKS * THREADS * N;
  for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N; i < n; i += UNROLL * step) {
    packet<float, N> value[UNROLL] = {};
#pragma unroll
    for (int k = 0; k < UNROLL; k++)
      if (i + k * step < n) value[k] = load_packet<N>(x + i + k * step);
#pragma unroll
    for (int k = 0; k < UNROLL; k++)
#pragma unroll
      for (int j = 0; j < N; j++) sum += (double)value[k][j] * (double)value[k][j];
  }
  sum = block_sum_double<THREADS>(sum);
  if (!threadIdx.x) partial[blockIdx.x] = sum;
}

static __global__ void clip_factor(const double *partial, int64_t parts, const float *settings, float *clip) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < parts; i += THREADS) sum += partial[i];
  sum = block_sum_double<THREADS>(sum);
  if (threadIdx.x) return;
  const float norm = (float)sqrt(sum), largest = settings[COMBA_ADAMW_MAX_NORM];
  clip[0] = norm;
  clip[1] = !isfinite(norm) ? 0 : (largest > 0 && norm > largest ? largest / norm : 1);
}

template <class T> static void forward(const comba_call *call) {
  double *partial = (double *)call->workspace;
  int64_t parts = 0;
  for (int slab = GRADIENT1; slab <= GRADIENT2; slab++) {
    const comba_view *gradient = &call->input[slab];
    if (!gradient->data) continue;
    const float *x = (const float *)gradient->data;
    const int64_t n = comba_shape_elements(&gradient->shape);
    if (n % 4 == 0 && comba_cuda_aligned(x, 16))
      squares<4><<<BLOCKS, THREADS, 0, comba_cuda_stream()>>>(x, n, partial + parts);
    else
      squares<1><<<BLOCKS, THREADS, 0, comba_cuda_stream()>>>(x, n, partial + parts);
    parts += BLOCKS;
  }
  clip_factor<<<1, THREADS, 0, comba_cuda_stream()>>>(partial, parts, (const float *)call->input[SETTINGS].data,
                                                      (float *)call->output[0].data);
  comba_cuda_note(cudaGetLastError(), "gradient_clip");
}

COMBA_CUDA_ROW_FORWARD(gradient_clip, infer);
