/* delta_net: the delta rule without decay (arXiv 2406.06484).
 *
 *   q, k = f(conv(W x)), f silu, relu, elu + 1 or identity;  v = silu(conv(W x))
 *   q, k divided by their length (l2) or their sum (sum)
 *   beta = sigmoid(W_b x), or 1 without use_beta; twice that with allow_neg_eigval
 *   S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T,  o_t = K^(-1/2) S_t^T q_t
 *   y = W_o RMSNorm(o), with use_gate W_o (RMSNorm(o) * silu(W_g x))
 *
 * A key whose features sum to 0 stays 0 under the sum norm, where fla has NaN. */
#include <stddef.h>

#include "mixers/delta_heads.h"
#include "mixers/projection.h"

enum { ACTIVATION_SILU, ACTIVATION_RELU, ACTIVATION_ELU, ACTIVATION_IDENTITY };
enum { NORM_L2, NORM_SUM };

typedef struct config {
  int64_t num_heads, conv_size;
  double expand_k, expand_v;
  bool use_gate, use_short_conv, use_beta, allow_neg_eigval;
  int qk_activation, qk_norm;
} config;

/* Channels of all heads: rounded down, as fla does. */
static int64_t channels(int64_t hidden_size, double expand) {
  return (int64_t)((double)hidden_size * expand);
}

/* q or k (B,T,H,K) as the recurrence reads it */
static comba_tensor *features(comba_build *build, const config *c, comba_tensor *x, const char *which, int64_t size) {
  comba_graph *graph = build->graph;
  const int64_t taps = c->use_short_conv ? c->conv_size : 0;
  const bool silu = c->qk_activation == ACTIVATION_SILU;
  if (c->qk_norm == NORM_L2 && (silu || c->qk_activation == ACTIVATION_IDENTITY))
    return comba_build_unit_projection(build, which, x, c->num_heads, size, taps, silu, COMBA_L2_EPSILON);
  comba_tensor *y = comba_build_projection(build, which, x, c->num_heads, size, taps, silu);
  if (c->qk_activation == ACTIVATION_RELU) y = comba_activation(graph, y, COMBA_RELU, 1);
  if (c->qk_activation == ACTIVATION_ELU) y = comba_activation(graph, y, COMBA_ELU_PLUS_ONE, 1);
  return c->qk_norm == NORM_SUM ? comba_sum_norm(graph, y, 0) : comba_l2_norm(graph, y, COMBA_L2_EPSILON);
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t d = x->shape.size[2], H = c->num_heads;
  const comba_shape gate = COMBA_SHAPE(build->batch, build->length, H);
  const double largest = c->allow_neg_eigval ? 2 : 1;
  comba_tensor *q = features(build, c, x, "q", channels(d, c->expand_k) / H);
  comba_tensor *k = features(build, c, x, "k", channels(d, c->expand_k) / H);
  comba_tensor *v = comba_build_projection(build, "v", x, H, channels(d, c->expand_v) / H,
                                           c->use_short_conv ? c->conv_size : 0, true);
  comba_tensor *beta = c->use_beta
                           ? comba_sigmoid_gate(graph, comba_build_linear(build, "b_proj", x, H, false), largest)
                           : comba_constant(graph, gate, largest);
  comba_tensor *o = comba_build_delta_rule(build, q, k, NULL, v, beta, comba_constant(graph, gate, 0), false);
  comba_tensor *z = c->use_gate ? comba_build_linear(build, "g_proj", x, channels(d, c->expand_v), false) : NULL;
  return comba_build_head_output(build, "o_norm.weight", o, z, COMBA_SILU, d);
}

static const char *const activations[] = {"silu", "relu", "elu", "identity", NULL};
static const char *const norms[] = {"l2", "sum", NULL};

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 16, .minimum = 1, .maximum = 65536,
     .help = "heads, a divisor of hidden_size * expand_k and of hidden_size * expand_v"},
    {"expand_k", COMBA_FIELD_NUMBER, FIELD(expand_k), .default_value = 1, .minimum = 1.0 / 4096, .maximum = 64,
     .help = "key size of all heads = hidden_size * expand_k"},
    {"expand_v", COMBA_FIELD_NUMBER, FIELD(expand_v), .default_value = 1, .minimum = 1.0 / 4096, .maximum = 64,
     .help = "value size of all heads = hidden_size * expand_v"},
    {"use_gate", COMBA_FIELD_BOOLEAN, FIELD(use_gate), .default_value = 0,
     .help = "gate the normed output by silu(g_proj x)"},
    {"use_short_conv", COMBA_FIELD_BOOLEAN, FIELD(use_short_conv), .default_value = 1,
     .help = "causal depthwise convolution of q, k and v"},
    {"conv_size", COMBA_FIELD_INTEGER, FIELD(conv_size), .default_value = 4, .minimum = 1, .maximum = 64,
     .help = "taps of the short convolution"},
    {"use_beta", COMBA_FIELD_BOOLEAN, FIELD(use_beta), .default_value = 1, .help = "false: beta is 1"},
    {"allow_neg_eigval", COMBA_FIELD_BOOLEAN, FIELD(allow_neg_eigval), .default_value = 0,
     .help = "beta up to 2 instead of 1, so that the transition may have negative eigenvalues"},
    {"qk_activation", COMBA_FIELD_CHOICE, FIELD(qk_activation), .default_value = ACTIVATION_SILU,
     .choices = activations, .help = "of q and k after the convolution; \"elu\" is elu(x) + 1. v always has silu"},
    {"qk_norm", COMBA_FIELD_CHOICE, FIELD(qk_norm), .default_value = NORM_L2, .choices = norms,
     .help = "q and k of a head are divided by their length (\"l2\") or by their sum (\"sum\")"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const comba_status status = comba_check_expansion("expand_k", hidden_size, c->expand_k, c->num_heads);
  return status == COMBA_OK ? comba_check_expansion("expand_v", hidden_size, c->expand_v, c->num_heads) : status;
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const int64_t keys = channels(hidden_size, c->expand_k), values = channels(hidden_size, c->expand_v);
  return comba_delta_rule_cost((double)keys * (double)values / (double)c->num_heads);
}

static const comba_default vision_defaults[] = {{"num_hidden_layers", 12}, {0}};

const comba_mixer_row comba_mixer_delta_net = {
    .model_type = "delta_net",
    .recurrence = "S_t = S_{t-1} (I - B_t k_t k_t^T) + B_t v_t k_t^T;  o_t = S_t q_t",
    .source = "Parallelizing Linear Transformers with the Delta Rule over Sequence Length, arXiv 2406.06484",
    .fields = fields,
    .vision_defaults = vision_defaults,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
