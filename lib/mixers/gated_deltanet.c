/* gated_deltanet: the delta rule on a state that decays (arXiv 2412.06464).
 *
 *   q, k, v = silu(conv(W x));  q, k normalised to length 1
 *   beta = sigmoid(W_b x), twice that with allow_neg_eigval;  g = ln alpha from W_a x (decay_gate)
 *   S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - e^{g_t} S_{t-1}^T k_t)^T,  o_t = K^(-1/2) S_t^T q_t
 *   y = W_o (RMSNorm(o) * silu(W_g x))
 *
 * The feedback reads the state after its decay, where Comba's reads it before. */
#include <stddef.h>

#include "mixers/delta_heads.h"
#include "mixers/projection.h"

typedef struct config {
  comba_heads heads; /* first: shared functions take a pointer to it */
  bool use_gate, allow_neg_eigval;
} config;

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t HV = comba_value_heads(&c->heads);
  comba_tensor *q, *k, *v;
  comba_build_projections(build, &c->heads, x, true, &q, &k, &v);
  comba_tensor *a = comba_build_linear(build, "a_proj", x, HV, false);
  comba_tensor *b = comba_build_linear(build, "b_proj", x, HV, false);
  comba_tensor *beta = comba_sigmoid_gate(graph, b, c->allow_neg_eigval ? 2 : 1);
  comba_tensor *g = comba_build_decay_gate(build, a, COMBA_DECAY_MAMBA2);
  comba_tensor *o = comba_build_delta_rule(build, q, k, NULL, v, beta, g, true);
  comba_tensor *gate =
      c->use_gate ? comba_build_linear(build, "g_proj", x, HV * comba_value_dim(&c->heads), false) : NULL;
  return comba_build_head_output(build, "o_norm.weight", o, gate, COMBA_SILU, x->shape.size[2]);
}

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"use_gate", COMBA_FIELD_BOOLEAN, FIELD(use_gate), .default_value = 1,
     .help = "gate the normed output by silu(g_proj x)"},
    {"allow_neg_eigval", COMBA_FIELD_BOOLEAN, FIELD(allow_neg_eigval), .default_value = 0,
     .help = "beta up to 2 instead of 1, so that the transition may have negative eigenvalues"},
    COMBA_HEADS_FIELDS(config, heads),
    {0}};

static const comba_default vision_defaults[] = {{"expand_v", 1}, {0}};

const comba_mixer_row comba_mixer_gated_deltanet = {
    .model_type = "gated_deltanet",
    .recurrence = "S_t = a_t S_{t-1} (I - B_t k_t k_t^T) + B_t v_t k_t^T;  o_t = S_t q_t",
    .source = "Gated Delta Networks: Improving Mamba2 with Delta Rule, arXiv 2412.06464",
    .fields = fields,
    .vision_defaults = vision_defaults,
    .config_size = sizeof(config),
    .check = comba_heads_check,
    .build = build_mixer,
    .cost = comba_heads_cost,
};
