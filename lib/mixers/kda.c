/* kda: Kimi Delta Attention (arXiv 2510.26692), the delta rule on a state whose key channels decay each at their own rate.
 *
 *   q, k, v = silu(conv(W x));  q, k normalised to length 1
 *   beta = sigmoid(W_b x), twice that with allow_neg_eigval
 *   g = -e^A_log softplus(F_2 F_1 x + dt_bias), or with lower_bound l: l sigmoid(e^A_log (F_2 F_1 x + dt_bias))
 *   S_t = diag(e^{g_t}) S_{t-1} + beta_t k_t (v_t - (diag(e^{g_t}) S_{t-1})^T k_t)^T,  o_t = K^(-1/2) S_t^T q_t
 *   y = W_o (RMSNorm(o) * sigmoid(G_2 G_1 x + c)) */
#include <stddef.h>

#include "mixers/delta_heads.h"
#include "mixers/projection.h"
#include "mixers/recurrence.h"

typedef struct config {
  comba_heads heads; /* first: shared functions take a pointer to it */
  double lower_bound;
  bool allow_neg_eigval, safe_gate;
} config;

/* Log decay (B,T,HV,K). */
static comba_tensor *decay(comba_build *build, const config *c, comba_tensor *x) {
  const int64_t HV = comba_value_heads(&c->heads), K = c->heads.head_dim;
  const comba_channel_decay_attributes attributes = {
      .kind = c->lower_bound < 0 ? COMBA_CHANNEL_SIGMOID : COMBA_CHANNEL_SOFTPLUS, .scale = -c->lower_bound};
  comba_tensor *f = comba_build_low_rank(build, "f_proj", x, comba_value_dim(&c->heads), HV * K, false);
  f = comba_reshape(build->graph, f, COMBA_SHAPE(build->batch, build->length, HV, K));
  comba_tensor *a_log =
      comba_build_head_scalar(build, "A_log", HV, c->safe_gate ? COMBA_DRAW_CONSTANT : COMBA_DRAW_A_LOG, !c->safe_gate);
  comba_tensor *dt_bias = comba_build_head_scalar(build, "dt_bias", HV * K, COMBA_DRAW_DT_BIAS, 0);
  return comba_channel_decay(build->graph, f, a_log, dt_bias, attributes);
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t HV = comba_value_heads(&c->heads), V = comba_value_dim(&c->heads);
  comba_tensor *q, *k, *v;
  comba_build_projections(build, &c->heads, x, true, &q, &k, &v);
  comba_tensor *beta = comba_build_linear(build, "b_proj", x, HV, false);
  comba_tensor *written =
      comba_token_scale(graph, k, comba_sigmoid_gate(graph, beta, c->allow_neg_eigval ? 2 : 1), false);
  comba_tensor *o = comba_build_diagonal_decay(build, "recurrent", q, written, v, decay(build, c, x), k, NULL,
                                               (comba_diagonal_decay_attributes){.read_after_decay = true});
  comba_tensor *gate = comba_build_low_rank(build, "g_proj", x, V, HV * V, true);
  return comba_build_head_output(build, "o_norm.weight", o, gate, COMBA_SIGMOID, x->shape.size[2]);
}

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"allow_neg_eigval", COMBA_FIELD_BOOLEAN, FIELD(allow_neg_eigval), .default_value = 0,
     .help = "beta up to 2 instead of 1, so that the transition may have negative eigenvalues"},
    {"lower_bound", COMBA_FIELD_NUMBER, FIELD(lower_bound), .default_value = 0, .minimum = -100, .maximum = -1e-6,
     .nullable = true, .null_value = 0, .help = "least log decay of a token, by a sigmoid; null: softplus, unbounded"},
    {"safe_gate", COMBA_FIELD_BOOLEAN, FIELD(safe_gate), .default_value = 0,
     .help = "A_log starts at 0; needs a lower_bound from -5 on, as the kernels that it stands for do"},
    COMBA_HEADS_FIELDS(config, heads),
    {0}};

static const comba_default defaults[] = {{"head_dim", 128}, {"num_heads", 16}, {"expand_v", 1}, {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  if (c->safe_gate && !(c->lower_bound < 0 && c->lower_bound >= -5))
    return comba_fail(COMBA_ERROR_ARGUMENT, "lower_bound is %g%s, expected -5 or more and less than 0 with safe_gate",
                      c->lower_bound, c->lower_bound < 0 ? "" : " (null)");
  return comba_heads_check(opaque, hidden_size);
}

const comba_mixer_row comba_mixer_kda = {
    .model_type = "kda",
    .recurrence = "S_t = S_{t-1} diag(a_t) (I - B_t k_t k_t^T) + B_t v_t k_t^T;  o_t = S_t q_t",
    .source = "Kimi Linear: An Expressive, Efficient Attention Architecture, arXiv 2510.26692",
    .fields = fields,
    .vision_defaults = defaults,
    .language_defaults = defaults,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = comba_heads_cost,
};
