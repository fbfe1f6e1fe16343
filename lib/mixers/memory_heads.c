#include "mixers/memory_heads.h"

#include <stdio.h>

#include "mixers/projection.h"

/* Under the root of the norm of q and k, as in the delta rule's mixers */
static const double L2_EPSILON = 1e-6;
/* A memory starts by keeping 98 % a token: sigmoid of this */
static const double RETENTION_BIAS = 4;

int64_t comba_memory_value_dim(const comba_memory_heads *heads) {
  const double size = (double)heads->head_dim * heads->expand_v;
  return size == (double)(int64_t)size ? (int64_t)size : 0;
}

comba_status comba_memory_heads_check(const void *opaque, int64_t hidden_size) {
  (void)hidden_size;
  const comba_memory_heads *heads = opaque;
  if (comba_memory_value_dim(heads)) return COMBA_OK;
  return comba_fail(COMBA_ERROR_ARGUMENT, "head_dim * expand_v is %g, expected a positive whole number",
                    (double)heads->head_dim * heads->expand_v);
}

comba_mixer_cost comba_memory_heads_cost(const void *opaque, int64_t hidden_size) {
  (void)hidden_size;
  const comba_memory_heads *heads = opaque;
  const int64_t K = heads->head_dim, V = comba_memory_value_dim(heads);
  const double memory = (double)(heads->num_heads * K * V);
  const double inside = 2 * (double)(heads->num_heads * heads->chunk_size * (K + V));
  return (comba_mixer_cost){.state_elements = 2 * memory, .flops_per_token = 6 * memory + inside};
}

comba_tensor *comba_build_memory_gate(comba_build *build, const char *name, comba_tensor *x, int64_t heads,
                                      comba_function function, double scale) {
  char projection[32];
  snprintf(projection, sizeof projection, "%s_proj", name);
  return comba_activation(build->graph, comba_build_linear(build, projection, x, heads, true), function, scale);
}

comba_tensor *comba_build_memory_decay(comba_build *build, const char *name, comba_tensor *x, int64_t heads,
                                       double bias) {
  char full[32];
  snprintf(full, sizeof full, "%s_proj", name);
  comba_tensor *g = comba_build_linear(build, full, x, heads, false);
  snprintf(full, sizeof full, "%s_bias", name);
  comba_tensor *offset = comba_build_parameter(build, full, COMBA_SHAPE(heads), COMBA_ROLE_SCALAR,
                                               (comba_initial){COMBA_DRAW_CONSTANT, bias});
  return comba_decay_gate(build->graph, g, NULL, offset, COMBA_DECAY_SIGMOID);
}

comba_memory_operands comba_build_memory_heads(comba_build *build, const comba_memory_heads *heads, comba_tensor *x,
                                               double slope, double scale, double deviation) {
  comba_graph *graph = build->graph;
  const int64_t H = heads->num_heads, K = heads->head_dim, V = comba_memory_value_dim(heads);
  const int64_t taps = heads->use_short_conv ? heads->conv_size : 0;
  const double base_lr = heads->base_lr != 0 ? heads->base_lr : 1 / (slope * (double)heads->chunk_size);
  comba_tensor *q = comba_build_projection(build, "q", x, H, K, taps, true);
  comba_tensor *k = comba_build_projection(build, "k", x, H, K, taps, true);
  return (comba_memory_operands){
      .q = comba_l2_norm(graph, q, L2_EPSILON),
      .k = comba_l2_norm(graph, k, L2_EPSILON),
      .v = comba_build_projection(build, "v", x, H, V, taps, true),
      .rate = comba_build_memory_gate(build, "rate", x, H, COMBA_SIGMOID, base_lr * scale),
      .retention = comba_build_memory_decay(build, "retention", x, H, RETENTION_BIAS),
      .memory = heads->learn_memory ? comba_build_parameter(build, "memory", COMBA_SHAPE(H, K, V), COMBA_ROLE_MATRIX,
                                                            (comba_initial){COMBA_DRAW_NORMAL, deviation})
                                    : NULL,
      .position = build->position,
      .cu_seqlens = build->cu_seqlens,
  };
}

comba_tensor *comba_build_memory_output(comba_build *build, const comba_memory_heads *heads, comba_tensor *x,
                                        comba_memory_operands operands, comba_memory_attributes attributes) {
  const int64_t H = heads->num_heads, K = heads->head_dim, V = comba_memory_value_dim(heads);
  const comba_shape state = COMBA_SHAPE(build->batch, H, operands.momentum ? 3 : 2, K, V);
  comba_tensor *after = NULL;
  operands.initial_state = comba_build_state(build, "memory", state);
  attributes.chunk = heads->chunk_size;
  comba_tensor *o = comba_memory(build->graph, &operands, attributes, &after);
  comba_build_update(build, operands.initial_state, after);
  return comba_build_memory_gated(build, heads, x, o);
}

comba_tensor *comba_build_memory_gated(comba_build *build, const comba_memory_heads *heads, comba_tensor *x,
                                       comba_tensor *o) {
  const int64_t H = heads->num_heads, V = comba_memory_value_dim(heads);
  comba_tensor *gate = heads->use_output_gate ? comba_build_linear(build, "g_proj", x, H * V, false) : NULL;
  return comba_build_head_output(build, "o_norm.weight", o, gate, COMBA_SILU, x->shape.size[2]);
}
