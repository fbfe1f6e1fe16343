/* With g = clip.factor gradient, element by element:
 *   m' = beta1 m + (1 - beta1) g;  v' = beta2 v + (1 - beta2) g^2
 *   w' = w - rate (m' / correction1 / (sqrt(v' / correction2) + epsilon) + decay w)
 * decay = settings.weight_decay with `decays`, else 0. A norm that is not finite leaves w, m and v as they are. */
#include "ops/extent.h"
#include "ops/ops.h"

enum { WEIGHT, GRADIENT, M, V, SETTINGS, CLIP };
enum { NEW_WEIGHT, NEW_M, NEW_V };

static comba_status infer(comba_signature *s) {
  const comba_shape *weight = &s->input[WEIGHT];
  if (!comba_extent_fits(weight, 0)) return comba_fail_shape(s, WEIGHT, "(...)");
  for (int i = GRADIENT; i <= V; i++)
    if (!comba_shape_equal(&s->input[i], weight)) return comba_fail_shape(s, i, "the shape of the weight");
  if (!comba_shape_equal(&s->input[SETTINGS], &COMBA_SHAPE(COMBA_ADAMW_SETTINGS)))
    return comba_fail_shape(s, SETTINGS, "(8)");
  if (!comba_shape_equal(&s->input[CLIP], &COMBA_SHAPE(2))) return comba_fail_shape(s, CLIP, "(2)");
  s->outputs = 3;
  for (int i = NEW_WEIGHT; i <= NEW_V; i++) s->output[i] = *weight;
  return COMBA_OK;
}

static void keep(const comba_view *from, const comba_view *to) {
  if (to->data != from->data) memcpy(to->data, from->data, (size_t)comba_shape_elements(&from->shape) * sizeof(real));
}

static void forward(const comba_call *call) {
  const comba_adamw_attributes *a = call->attributes;
  const real *settings = call->input[SETTINGS].data, *clip = call->input[CLIP].data;
  if (!isfinite(clip[0])) {
    keep(&call->input[WEIGHT], &call->output[NEW_WEIGHT]);
    keep(&call->input[M], &call->output[NEW_M]);
    keep(&call->input[V], &call->output[NEW_V]);
    return;
  }
  const int64_t n = comba_shape_elements(&call->input[WEIGHT].shape);
  const real *w = call->input[WEIGHT].data, *gradient = call->input[GRADIENT].data;
  const real *m = call->input[M].data, *v = call->input[V].data;
  real *new_w = call->output[NEW_WEIGHT].data, *new_m = call->output[NEW_M].data, *new_v = call->output[NEW_V].data;
  const real factor = clip[1], rate = settings[COMBA_ADAMW_LEARNING_RATE], epsilon = settings[COMBA_ADAMW_EPSILON];
  const real beta1 = settings[COMBA_ADAMW_BETA1], beta2 = settings[COMBA_ADAMW_BETA2];
  const real scale1 = 1 / settings[COMBA_ADAMW_CORRECTION1], scale2 = 1 / settings[COMBA_ADAMW_CORRECTION2];
  const real decay = a->decays ? settings[COMBA_ADAMW_WEIGHT_DECAY] : 0;
#pragma omp parallel for simd
  for (int64_t i = 0; i < n; i++) {
    const real g = factor * gradient[i];
    const real first = beta1 * m[i] + (1 - beta1) * g, second = beta2 * v[i] + (1 - beta2) * g * g;
    const real step = first * scale1 / (comba_real_sqrt(second * scale2) + epsilon);
    new_w[i] = w[i] - rate * (step + decay * w[i]);
    new_m[i] = first;
    new_v[i] = second;
  }
}

#define SLAB(...)                                                                                                      \
  {COMBA_SHAPE(__VA_ARGS__)}, {COMBA_SHAPE(__VA_ARGS__)}, {COMBA_SHAPE(__VA_ARGS__), .scale = 0.1}, {                  \
    COMBA_SHAPE(__VA_ARGS__), COMBA_FILL_UNIFORM, .low = 0, .high = 1                                                  \
  }
#define SETTINGS_ANY                                                                                                   \
  { COMBA_SHAPE(COMBA_ADAMW_SETTINGS), COMBA_FILL_UNIFORM, .low = 0.05, .high = 0.9 }
#define CLIP_ANY                                                                                                       \
  { COMBA_SHAPE(2), COMBA_FILL_UNIFORM, .low = 0.1, .high = 1 }

static const comba_case cases[] = {
    {.name = "weight decay",
     .attributes = &(const comba_adamw_attributes){.decays = true},
     .input = {SLAB(1003), SETTINGS_ANY, CLIP_ANY}},
    {.name = "no weight decay, rank 2", .input = {SLAB(3, 7), SETTINGS_ANY, CLIP_ANY}},
    {.name = "norm not finite", .input = {SLAB(65), SETTINGS_ANY, {COMBA_SHAPE(2), .scale = INFINITY}}},
    {.name = "2^23 values",
     .attributes = &(const comba_adamw_attributes){.decays = true},
     .benchmark = true,
     .input = {SLAB(1 << 23), SETTINGS_ANY, CLIP_ANY}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_adamw) = {
    .name = "adamw",
    .formula = "w' = w - rate (m' / c1 / (sqrt(v' / c2) + epsilon) + decay w)",
    .inputs = 6,
    .outputs = 3,
    .input_class = {COMBA_PARAMETER, COMBA_STATE, COMBA_STATE, COMBA_STATE, COMBA_STATE, COMBA_STATE},
    .output_class = {COMBA_PARAMETER, COMBA_STATE, COMBA_STATE},
    .attributes_size = sizeof(comba_adamw_attributes),
    .infer = infer,
    .forward = forward,
    .cases = cases,
};
