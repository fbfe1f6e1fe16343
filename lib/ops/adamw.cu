/* A step of AdamW over a slab, as adamw.c has it; one pass also writes the weights' copy in bfloat16. */
#include "core/cuda_kernel.h"

enum { WEIGHT, GRADIENT, M, V, SETTINGS, CLIP };

template <class T> static void forward(const comba_call *call) {
  const comba_adamw_attributes *a = (const comba_adamw_attributes *)call->attributes;
  const float *w = (const float *)call->input[WEIGHT].data, *gradient = (const float *)call->input[GRADIENT].data;
  const float *m = (const float *)call->input[M].data, *v = (const float *)call->input[V].data;
  const float *settings = (const float *)call->input[SETTINGS].data, *clip = (const float *)call->input[CLIP].data;
  float *new_w = (float *)call->output[0].data, *new_m = (float *)call->output[1].data;
  float *new_v = (float *)call->output[2].data;
  bfloat16 *copy = comba_cuda_narrow_copy(new_w);
  const bool decays = a->decays;
  comba_each(comba_shape_elements(&call->input[WEIGHT].shape), [=] __device__(int64_t i) {
    const bool finite = isfinite(clip[0]); /* else everything stays as it is */
    const float beta1 = settings[COMBA_ADAMW_BETA1], beta2 = settings[COMBA_ADAMW_BETA2];
    const float g = clip[1] * gradient[i];
    const float first = beta1 * m[i] + (1 - beta1) * g, second = beta2 * v[i] + (1 - beta2) * g * g;
    const float step = first / settings[COMBA_ADAMW_CORRECTION1] /
                       (sqrtf(second / settings[COMBA_ADAMW_CORRECTION2]) + settings[COMBA_ADAMW_EPSILON]);
    const float decay = decays ? settings[COMBA_ADAMW_WEIGHT_DECAY] : 0;
    const float weight = finite ? w[i] - settings[COMBA_ADAMW_LEARNING_RATE] * (step + decay * w[i]) : w[i];
    new_m[i] = finite ? first : m[i];
    new_v[i] = finite ? second : v[i];
    new_w[i] = weight;
    if (copy) store(copy + i, weight);
  });
}

COMBA_CUDA_ROW_FORWARD(adamw);
