/* gla: gated linear attention (arXiv 2312.06635).
 *
 *   q, k, v = f(W x);  g = max(clamp_min, ln sigmoid(W_2 W_1 x + c) / 16)
 *   S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T,  o_t = K^(-1/2) S_t^T q_t
 *   y = W_o (RMSNorm(o) * silu(W_g x))
 *
 * With fewer key/value heads, k, v and g of a head serve a group of consecutive query heads. */
#include "mixers/mixer.h"
#include "mixers/projection.h"

#include <stddef.h>

enum { GATE_RANK = 16 }; /* fla fixes both */
static const double GATE_SCALE = 1.0 / 16;

typedef struct config {
  int64_t num_heads, num_kv_heads, conv_size;
  double expand_k, expand_v, clamp_min;
  bool use_output_gate, use_short_conv;
  int feature_map;
} config;

static int64_t kv_heads(const config *c) {
  return c->num_kv_heads ? c->num_kv_heads : c->num_heads;
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, T = build->length, d = x->shape.size[2], H = c->num_heads, HKV = kv_heads(c);
  const int64_t K = comba_expanded_head_size(d, c->expand_k, c->num_heads),
                V = comba_expanded_head_size(d, c->expand_v, c->num_heads);
  const int64_t taps = c->use_short_conv ? c->conv_size : 0;

  comba_tensor *q = comba_build_projection(build, "q", x, H, K, taps, taps > 0);
  comba_tensor *k = comba_build_projection(build, "k", x, HKV, K, taps, taps > 0);
  comba_tensor *v = comba_build_projection(build, "v", x, HKV, V, taps, taps > 0);
  if (c->feature_map >= 0) {
    q = comba_activation(graph, q, (comba_function)c->feature_map, 1);
    k = comba_activation(graph, k, (comba_function)c->feature_map, 1);
  }
  comba_tensor *g = comba_build_low_rank(build, "gk_proj", x, GATE_RANK, HKV * K, true);
  g = comba_reshape(graph, g, COMBA_SHAPE(B, T, HKV, K));
  g = comba_channel_decay(graph, g, NULL, NULL,
                          (comba_channel_decay_attributes){COMBA_CHANNEL_LOG_SIGMOID, GATE_SCALE, c->clamp_min});

  comba_tensor *before = comba_build_state(build, "recurrent", COMBA_SHAPE(B, H, K, V)), *after = NULL;
  const comba_diagonal_decay_attributes attributes = {.mode = build->mode};
  comba_tensor *o = comba_diagonal_decay(graph, q, k, v, g, NULL, NULL, before, build->cu_seqlens, attributes, &after);
  comba_build_update(build, before, after);

  comba_tensor *gate = c->use_output_gate ? comba_build_linear(build, "g_proj", x, H * V, false) : NULL;
  return comba_build_head_output(build, gate ? "g_norm_swish_gate.weight" : "g_norm.weight", o, gate, COMBA_SILU, d);
}

/* order of comba_function */
static const char *const feature_maps[] = {"sigmoid", "silu", "gelu", "tanh", "relu", NULL};

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"expand_k", COMBA_FIELD_NUMBER, FIELD(expand_k), .default_value = 0.5, .minimum = 1.0 / 4096, .maximum = 64,
     .help = "key size of all heads = hidden_size * expand_k"},
    {"expand_v", COMBA_FIELD_NUMBER, FIELD(expand_v), .default_value = 1, .minimum = 1.0 / 4096, .maximum = 64,
     .help = "value size of all heads = hidden_size * expand_v"},
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 4, .minimum = 1, .maximum = 65536,
     .help = "query heads"},
    {"num_kv_heads", COMBA_FIELD_INTEGER, FIELD(num_kv_heads), .default_value = 0, .minimum = 1, .maximum = 65536,
     .nullable = true, .null_value = 0, .help = "key, value and gate heads, a divisor of num_heads; null: num_heads"},
    {"feature_map", COMBA_FIELD_CHOICE, FIELD(feature_map), .default_value = -1, .choices = feature_maps,
     .nullable = true, .null_value = -1, .help = "function of q and k; null: none"},
    {"use_short_conv", COMBA_FIELD_BOOLEAN, FIELD(use_short_conv), .default_value = 0,
     .help = "causal depthwise convolution and silu of q, k and v"},
    {"conv_size", COMBA_FIELD_INTEGER, FIELD(conv_size), .default_value = 4, .minimum = 1, .maximum = 64,
     .help = "taps of the short convolution"},
    {"use_output_gate", COMBA_FIELD_BOOLEAN, FIELD(use_output_gate), .default_value = 1,
     .help = "gate the normed output with silu"},
    {"clamp_min", COMBA_FIELD_NUMBER, FIELD(clamp_min), .default_value = 0, .minimum = -100, .maximum = -1e-6,
     .nullable = true, .null_value = 0, .help = "least log decay of a token; null: -100"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  comba_status status = comba_check_expansion("expand_k", hidden_size, c->expand_k, c->num_heads);
  if (status == COMBA_OK) status = comba_check_expansion("expand_v", hidden_size, c->expand_v, c->num_heads);
  if (status != COMBA_OK) return status;
  if (c->num_heads % kv_heads(c))
    return comba_fail(COMBA_ERROR_ARGUMENT, "num_kv_heads is %lld, expected a divisor of num_heads %lld",
                      (long long)kv_heads(c), (long long)c->num_heads);
  return COMBA_OK;
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const double state = (double)(c->num_heads * comba_expanded_head_size(hidden_size, c->expand_k, c->num_heads) *
                                comba_expanded_head_size(hidden_size, c->expand_v, c->num_heads));
  return (comba_mixer_cost){.state_elements = state, .flops_per_token = 5 * state};
}

const comba_mixer_row comba_mixer_gla = {
    .model_type = "gla",
    .recurrence = "S_t = S_{t-1} diag(a_t) + v_t k_t^T;  o_t = S_t q_t",
    .source = "Gated Linear Attention Transformers with Hardware-Efficient Training, arXiv 2312.06635",
    .fields = fields,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
