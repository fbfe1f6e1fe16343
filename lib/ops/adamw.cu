/* A step of AdamW over a slab, as adamw.c has it; one pass also writes the weights' copy in bfloat16. */
#include "core/cuda_packet.h"

enum { WEIGHT, GRADIENT, M, V, SETTINGS, CLIP };

template <int N>
static __global__ void step(int64_t n, const float *w, const float *gradient, const float *m, const float *v,
                            const float *settings, const float *clip, bool decays, float *new_w, float *new_m,
                            float *new_v, bfloat16 *copy) {
  const int64_t i = ((int64_t)blockIdx.x * COMBA_CUDA_BLOCK + threadIdx.x) * N;
  if (i >= n) return;
  const packet<float, N> g = load_packet<N>(gradient + i), old_m = load_packet<N>(m + i), old_v = load_packet<N>(v + i);
  const packet<float, N> old_w = load_packet<N>(w + i);
  const bool finite = isfinite(clip[0]); /* else everything stays as it is */
  const float beta1 = settings[COMBA_ADAMW_BETA1], beta2 = settings[COMBA_ADAMW_BETA2];
  const float decay = decays ? settings[COMBA_ADAMW_WEIGHT_DECAY] : 0;
  float first[N], second[N], weight[N];
#pragma unroll
  for (int k = 0; k < N; k++) {
    const float clipped = clip[1] * g[k];
    first[k] = beta1 * old_m[k] + (1 - beta1) * clipped;
    second[k] = beta2 * old_v[k] + (1 - beta2) * clipped * clipped;
    const float along = first[k] / settings[COMBA_ADAMW_CORRECTION1] /
                        (sqrtf(second[k] / settings[COMBA_ADAMW_CORRECTION2]) + settings[COMBA_ADAMW_EPSILON]);
    weight[k] = finite ? old_w[k] - settings[COMBA_ADAMW_LEARNING_RATE] * (along + decay * old_w[k]) : old_w[k];
    if (!finite) {
      first[k] = old_m[k];
      second[k] = old_v[k];
    }
  }
  put_packet<N>(new_m + i, first, false);
  put_packet<N>(new_v + i, second, false);
  put_packet<N>(new_w + i, weight, false);
  if (copy) put_packet<N>(copy + i, weight, false);
}

template <class T> static void forward(const comba_call *call) {
  const comba_adamw_attributes *a = (const comba_adamw_attributes *)call->attributes;
  const float *w = (const float *)call->input[WEIGHT].data, *gradient = (const float *)call->input[GRADIENT].data;
  const float *m = (const float *)call->input[M].data, *v = (const float *)call->input[V].data;
  const float *settings = (const float *)call->input[SETTINGS].data, *clip = (const float *)call->input[CLIP].data;
  float *new_w = (float *)call->output[0].data, *new_m = (float *)call->output[1].data;
  float *new_v = (float *)call->output[2].data;
  bfloat16 *copy = comba_cuda_narrow_copy(new_w);
  const int64_t n = comba_shape_elements(&call->input[WEIGHT].shape);
  const auto launch = [&](auto kernel, int values) {
    const int64_t each = (int64_t)values * COMBA_CUDA_BLOCK;
    kernel<<<(unsigned)((n + each - 1) / each), COMBA_CUDA_BLOCK, 0, comba_cuda_stream()>>>(
        n, w, gradient, m, v, settings, clip, a->decays, new_w, new_m, new_v, copy);
  };
  bool packs = n % 4 == 0 && comba_cuda_aligned(copy, 8);
  for (const void *p : {(const void *)w, (const void *)gradient, (const void *)m, (const void *)v, (const void *)new_w,
                        (const void *)new_m, (const void *)new_v})
    packs = packs && comba_cuda_aligned(p, 16);
  if (packs)
    launch(step<4>, 4);
  else
    launch(step<1>, 1);
  comba_cuda_note(cudaGetLastError(), "adamw");
}

COMBA_CUDA_ROW_FORWARD(adamw);
