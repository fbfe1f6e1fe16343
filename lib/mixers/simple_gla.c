/* simple_gla: gated linear attention with one decay a head (arXiv 2312.06635, 2405.21060).
 *
 *   q, k, v = silu(conv(W x));  g = ln sigmoid(W_gk x + c) / gate_logit_normalizer, one a query head
 *   S_t = e^{g_t} S_{t-1} + k_t v_t^T,  o_t = K^(-1/2) S_t^T q_t
 *   y = W_o (RMSNorm(o) * silu(W_g x)) */
#include "mixers/expanded_heads.h"
#include "mixers/recurrence.h"

typedef struct config {
  comba_expanded_heads heads; /* first: shared functions take a pointer to it */
  int64_t conv_size;
  double gate_logit_normalizer;
  bool use_short_conv;
  int feature_map;
} config;

/* g (B,T,H): the decay of a single channel */
static comba_tensor *decay(comba_build *build, const config *c, comba_tensor *x) {
  const int64_t B = build->batch, T = build->length, H = c->heads.num_heads;
  const comba_channel_decay_attributes attributes = {COMBA_CHANNEL_LOG_SIGMOID, 1 / c->gate_logit_normalizer, 0};
  comba_tensor *g =
      comba_reshape(build->graph, comba_build_linear(build, "gk_proj", x, H, true), COMBA_SHAPE(B, T, H, 1));
  g = comba_channel_decay(build->graph, g, NULL, NULL, attributes);
  return comba_reshape(build->graph, g, COMBA_SHAPE(B, T, H));
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_tensor *q, *k, *v;
  comba_build_expanded_heads(build, &c->heads, x, c->use_short_conv ? c->conv_size : 0, &q, &k, &v);
  q = comba_build_activation_map(build, q, c->feature_map, COMBA_GELU_TANH);
  k = comba_build_activation_map(build, k, c->feature_map, COMBA_GELU_TANH);
  comba_tensor *o =
      comba_build_scalar_decay(build, "recurrent", q, k, v, decay(build, c, x), (comba_scalar_decay_attributes){0});
  return comba_build_swish_output(build, &(comba_swish_output){true, true, true}, x, o);
}

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {COMBA_EXPANDED_HEADS_FIELDS(config, heads, 4, 1, 1),
                                     COMBA_ACTIVATION_MAP_FIELD(config, feature_map),
                                     {"use_short_conv", COMBA_FIELD_BOOLEAN, FIELD(use_short_conv), .default_value = 1,
                                      .help = "causal depthwise convolution and silu of q, k and v"},
                                     {"conv_size", COMBA_FIELD_INTEGER, FIELD(conv_size), .default_value = 4,
                                      .minimum = 1, .maximum = 64, .help = "taps of the short convolution"},
                                     {"gate_logit_normalizer", COMBA_FIELD_NUMBER, FIELD(gate_logit_normalizer),
                                      .default_value = 16, .minimum = 1.0 / 1024, .maximum = 1e6,
                                      .help = "log decays are divided by it: larger forgets more slowly"},
                                     {0}};

const comba_mixer_row comba_mixer_simple_gla = {
    .model_type = "simple_gla",
    .recurrence = "S_t = a_t S_{t-1} + v_t k_t^T;  o_t = S_t q_t",
    .source = "Gated Linear Attention, arXiv 2312.06635, with one decay a head as in Mamba-2, arXiv 2405.21060",
    .fields = fields,
    .config_size = sizeof(config),
    .check = comba_expanded_heads_check,
    .build = build_mixer,
    .cost = comba_expanded_heads_cost,
};
