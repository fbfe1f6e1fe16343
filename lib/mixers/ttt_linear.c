/* ttt_linear: a linear map that learns at test time (TTT-Linear, arXiv 2407.04620).
 *
 *   q, k = turned (W x), v = W_v x;  rate = base_lr sigmoid(theta x + b) / F;  w_i = max(1/i + token_idx_i, 0)
 *   in mini-batches from their start W, b:  n_j = d/dz 1/2 |LN(z) - (v_j - k_j)|^2 at z = W^T k_j + b
 *   W_i = W - w_i sum_{j<=i} rate_j k_j n_j^T,  b_i = b - w_i sum_{j<=i} rate_j n_j
 *   y = W_o (gelu(W_g x) LayerNorm(q_i + LN(W_i^T q_i + b_i)))
 *
 * LN is a layer norm with one weight and bias a head, in the loss and at the output alike. */
#include "mixers/ttt.h"

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const comba_ttt *c = opaque;
  const int64_t H = c->num_heads, F = x->shape.size[2] / H;
  const comba_ttt_operands t = comba_build_ttt(build, c, x);
  comba_tensor *weight = comba_build_parameter(build, "W1", COMBA_SHAPE(H, F, F), COMBA_ROLE_MATRIX,
                                               (comba_initial){COMBA_DRAW_NORMAL, 0.02});
  comba_tensor *bias = comba_build_parameter(build, "b1", COMBA_SHAPE(H, 1, F), COMBA_ROLE_VECTOR,
                                             (comba_initial){COMBA_DRAW_CONSTANT, 0});
  comba_tensor *before = comba_build_state(build, "memory", COMBA_SHAPE(build->batch, H, 2, F + 1, F)), *after = NULL;
  const comba_memory_operands operands = {
      COMBA_TTT_MEMORY_OPERANDS(t),
      .memory = weight,
      .bias = comba_reshape(build->graph, bias, COMBA_SHAPE(H, F)),
      .initial_state = before,
      .position = build->position,
      .cu_seqlens = build->cu_seqlens,
  };
  const comba_memory_attributes attributes = {
      .chunk = c->mini_batch_size, .loss = {.kind = COMBA_LOSS_LAYER_NORM}, .residual = true};
  comba_tensor *o = comba_memory(build->graph, &operands, attributes, &after);
  comba_build_update(build, before, after);
  return comba_build_ttt_output(build, c, x, &t, o);
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const comba_ttt *c = opaque;
  const double F = (double)(hidden_size / c->num_heads), memory = (double)hidden_size * (F + 1);
  return (comba_mixer_cost){.state_elements = 2 * memory,
                            .flops_per_token = 6 * memory + 4 * (double)(c->mini_batch_size * hidden_size)};
}

const comba_mixer_row comba_mixer_ttt_linear = {
    .model_type = "ttt_linear",
    .recurrence = "W_t = W_0 - w_t sum r_j n_j k_j^T, n_j = d loss(W_0 k_j), W_0 every 16 tokens;  o_t = W_t q_t",
    COMBA_TTT_ROW,
    .build = build_mixer,
    .cost = cost,
};
