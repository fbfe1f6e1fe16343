#include "mixers/recurrence.h"

/* (B,H,K,V), H the most heads of an operand */
static comba_shape state_shape(const comba_build *build, comba_tensor *const *operand, int count, int64_t K,
                               int64_t V) {
  int64_t heads = 1;
  for (int i = 0; i < count; i++)
    if (operand[i] && operand[i]->shape.size[2] > heads) heads = operand[i]->shape.size[2];
  return COMBA_SHAPE(build->batch, heads, K, V);
}

comba_tensor *comba_build_scalar_decay(comba_build *build, const char *name, comba_tensor *q, comba_tensor *k,
                                       comba_tensor *v, comba_tensor *g, comba_scalar_decay_attributes attributes) {
  if (!q || !k || !v) return NULL;
  const comba_shape states = state_shape(build, (comba_tensor *[]){q, k, v}, 3, q->shape.size[3], v->shape.size[3]);
  comba_tensor *before = comba_build_state(build, name, states), *after = NULL;
  attributes.mode = build->mode;
  comba_tensor *o = comba_scalar_decay(build->graph, q, k, v, g, before, build->cu_seqlens, attributes, &after);
  comba_build_update(build, before, after);
  return o;
}

comba_tensor *comba_build_diagonal_decay(comba_build *build, const char *name, comba_tensor *q, comba_tensor *k,
                                         comba_tensor *v, comba_tensor *g, comba_tensor *a, comba_tensor *b,
                                         comba_diagonal_decay_attributes attributes) {
  if (!q || !k || !v || !g) return NULL;
  const comba_shape states =
      state_shape(build, (comba_tensor *[]){q, k, v, g, a, b}, 6, q->shape.size[3], v->shape.size[3]);
  comba_tensor *before = comba_build_state(build, name, states), *after = NULL;
  attributes.mode = build->mode;
  comba_tensor *o = comba_diagonal_decay(build->graph, q, k, v, g, a, b, before, build->cu_seqlens, attributes, &after);
  comba_build_update(build, before, after);
  return o;
}
