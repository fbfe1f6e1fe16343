/* ttt_mlp: two layers that learn at test time (TTT-MLP, arXiv 2407.04620).
 *
 *   q, k, v, rate, w as in ttt_linear;  f(x) = gelu(x W1 + b1) W2 + b2
 *   in mini-batches from the memory M = (W1, b1, W2, b2) at their start: l_j = 1/2 |LN(f(k_j)) - (v_j - k_j)|^2
 *   M_i = M - w_i sum_{j<=i} rate_j dl_j/dM
 *   y = W_o (gelu(W_g x) LayerNorm(q_i + LN(f_i(q_i)))), f_i with M_i
 *
 * LN is a layer norm with one weight and bias a head, in the loss and at the output alike. */
#include "mixers/ttt.h"

enum { EXPANSION = 4 }; /* width of the hidden layer over that of a head; the released layer fixes it */

static comba_tensor *weight(comba_build *build, const char *name, int64_t heads, int64_t in, int64_t out) {
  return comba_build_parameter(build, name, COMBA_SHAPE(heads, in, out), COMBA_ROLE_MATRIX,
                               (comba_initial){COMBA_DRAW_NORMAL, 0.02});
}

/* (H, 1, size) in files, for the operator (H, size) */
static comba_tensor *bias(comba_build *build, const char *name, int64_t heads, int64_t size) {
  comba_tensor *b = comba_build_parameter(build, name, COMBA_SHAPE(heads, 1, size), COMBA_ROLE_VECTOR,
                                          (comba_initial){COMBA_DRAW_CONSTANT, 0});
  return comba_reshape(build->graph, b, COMBA_SHAPE(heads, size));
}

/* Numbers of one head's memory */
static int64_t memory_size(int64_t F) {
  const int64_t M = EXPANSION * F;
  return 2 * F * M + M + F;
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const comba_ttt *c = opaque;
  const int64_t H = c->num_heads, F = x->shape.size[2] / H, M = EXPANSION * F;
  const comba_ttt_operands t = comba_build_ttt(build, c, x);
  comba_tensor *before = comba_build_state(build, "memory", COMBA_SHAPE(build->batch, H, 2 * memory_size(F)));
  comba_tensor *after = NULL;
  const comba_memory_mlp_operands operands = {
      COMBA_TTT_MEMORY_OPERANDS(t),       .w1 = weight(build, "W1", H, F, M), .b1 = bias(build, "b1", H, M),
      .w2 = weight(build, "W2", H, M, F), .b2 = bias(build, "b2", H, F),      .initial_state = before,
      .position = build->position,        .cu_seqlens = build->cu_seqlens,
  };
  const comba_memory_mlp_attributes attributes = {
      .chunk = c->mini_batch_size, .loss = {.kind = COMBA_LOSS_LAYER_NORM}, .mode = build->mode};
  comba_tensor *o = comba_memory_mlp(build->graph, &operands, attributes, &after);
  comba_build_update(build, before, after);
  return comba_build_ttt_output(build, c, x, &t, o);
}

/* Two products with each layer for the gradients, one with its transpose, one for the query, and the updates. */
static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const comba_ttt *c = opaque;
  const int64_t F = hidden_size / c->num_heads;
  const double product = (double)(hidden_size * EXPANSION * F);
  return (comba_mixer_cost){.state_elements = 2 * (double)(c->num_heads * memory_size(F)),
                            .flops_per_token = 14 * product};
}

const comba_mixer_row comba_mixer_ttt_mlp = {
    .model_type = "ttt_mlp",
    .recurrence = "M_t = M_0 - w_t sum r_j dl(M_0; k_j)/dM, M_0 every 16 tokens, M two layers;  o_t = M_t(q_t)",
    COMBA_TTT_ROW,
    .build = build_mixer,
    .cost = cost,
};
