/* gla: gated linear attention (arXiv 2312.06635).
 *
 *   q, k, v = f(W x);  g = max(clamp_min, ln sigmoid(W_2 W_1 x + c) / 16)
 *   S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T,  o_t = K^(-1/2) S_t^T q_t
 *   y = W_o (RMSNorm(o) * silu(W_g x))
 *
 * With fewer key/value heads, k, v and g of a head serve a group of consecutive query heads. */
#include "mixers/expanded_heads.h"
#include "mixers/projection.h"
#include "mixers/recurrence.h"

enum { GATE_RANK = 16 }; /* fla fixes both */
static const double GATE_SCALE = 1.0 / 16;

typedef struct config {
  comba_expanded_heads heads; /* first: shared functions take a pointer to it */
  int64_t conv_size;
  double clamp_min;
  bool use_short_conv;
  comba_swish_output output;
  int feature_map;
} config;

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  const int64_t HKV = comba_kv_heads(&c->heads), K = comba_key_size(&c->heads, x->shape.size[2]);
  comba_tensor *q, *k, *v;
  comba_build_expanded_heads(build, &c->heads, x, c->use_short_conv ? c->conv_size : 0, &q, &k, &v);
  q = comba_build_activation_map(build, q, c->feature_map, COMBA_GELU_TANH);
  k = comba_build_activation_map(build, k, c->feature_map, COMBA_GELU_TANH);
  comba_tensor *g = comba_build_low_rank(build, "gk_proj", x, GATE_RANK, HKV * K, true);
  g = comba_reshape(build->graph, g, COMBA_SHAPE(build->batch, build->length, HKV, K));
  g = comba_channel_decay(build->graph, g, NULL, NULL,
                          (comba_channel_decay_attributes){COMBA_CHANNEL_LOG_SIGMOID, GATE_SCALE, c->clamp_min});
  comba_tensor *o =
      comba_build_diagonal_decay(build, "recurrent", q, k, v, g, NULL, NULL, (comba_diagonal_decay_attributes){0});
  return comba_build_swish_output(build, &c->output, x, o);
}

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {COMBA_EXPANDED_HEADS_FIELDS(config, heads, 4, 0.5, 1),
                                     COMBA_ACTIVATION_MAP_FIELD(config, feature_map),
                                     {"use_short_conv", COMBA_FIELD_BOOLEAN, FIELD(use_short_conv), .default_value = 0,
                                      .help = "causal depthwise convolution and silu of q, k and v"},
                                     {"conv_size", COMBA_FIELD_INTEGER, FIELD(conv_size), .default_value = 4,
                                      .minimum = 1, .maximum = 64, .help = "taps of the short convolution"},
                                     COMBA_SWISH_OUTPUT_FIELDS(config, output),
                                     {"clamp_min", COMBA_FIELD_NUMBER, FIELD(clamp_min), .default_value = 0,
                                      .minimum = -100, .maximum = -1e-6, .nullable = true, .null_value = 0,
                                      .help = "least log decay of a token; null: -100"},
                                     {0}};

const comba_mixer_row comba_mixer_gla = {
    .model_type = "gla",
    .recurrence = "S_t = S_{t-1} diag(a_t) + v_t k_t^T;  o_t = S_t q_t",
    .source = "Gated Linear Attention Transformers with Hardware-Efficient Training, arXiv 2312.06635",
    .fields = fields,
    .config_size = sizeof(config),
    .check = comba_expanded_heads_check,
    .build = build_mixer,
    .cost = comba_expanded_heads_cost,
};
