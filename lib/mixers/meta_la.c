/* meta_la: linear attention whose decay takes the place of its keys (MetaLA, arXiv 2411.10741).
 *
 *   u = silu(conv(x));  q, v, z = W u;  g = ln sigmoid(W_k u) / 16;  k = 1 - e^g
 *   S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T,  o_t = K^(-1/2) S_t^T q_t
 *   o_t += sigmoid((sum_i q_ti k_ti w_i) v_t), what the token sees of itself beside the state
 *   y = W_o (silu(z) * LayerNorm(o)), LayerNorm per head without weights */
#include "mixers/mixer.h"
#include "mixers/projection.h"
#include "mixers/recurrence.h"

#include <stddef.h>

/* as released, whatever norm_eps says */
static const double NORM_EPSILON = 1e-5;

typedef struct config {
  int64_t num_heads, conv_size;
  double expand_k, gate_logit_normalizer;
  bool use_short_conv, use_self_augmentation;
} config;

/* (B,T,heads,size) = NAME.weight u */
static comba_tensor *project(comba_build *build, const char *name, comba_tensor *u, int64_t heads, int64_t size) {
  comba_tensor *y = comba_build_linear(build, name, u, heads * size, false);
  return comba_reshape(build->graph, y, COMBA_SHAPE(build->batch, build->length, heads, size));
}

/* o + sigmoid((sum_i q_i k_i w_i) v), w from 0 */
static comba_tensor *augment(comba_build *build, comba_tensor *o, comba_tensor *q, comba_tensor *k, comba_tensor *v) {
  if (!o || !q) return NULL;
  comba_graph *graph = build->graph;
  const int64_t H = q->shape.size[2], K = q->shape.size[3];
  comba_tensor *w = comba_build_vector(build, "aug_balance", H * K, 0);
  comba_tensor *own =
      comba_bonus(graph, comba_constant(graph, o->shape, 0), q, k, v, comba_reshape(graph, w, COMBA_SHAPE(H, K)));
  return comba_add(graph, o, comba_activation(graph, own, COMBA_SIGMOID, 1));
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t d = x->shape.size[2], H = c->num_heads, V = d / H, K = comba_expanded_head_size(d, c->expand_k, H);
  comba_tensor *u = x;
  if (c->use_short_conv) u = comba_build_convolution(build, "conv1d", x, c->conv_size, true, false);
  comba_tensor *q = project(build, "q_proj", u, H, K), *v = project(build, "v_proj", u, H, V);
  const comba_channel_decay_attributes gate = {COMBA_CHANNEL_LOG_SIGMOID, 1 / c->gate_logit_normalizer, 0};
  comba_tensor *g = comba_channel_decay(graph, project(build, "k_gate", u, H, K), NULL, NULL, gate);
  comba_tensor *k = comba_complement(graph, g);
  comba_tensor *z = comba_build_linear(build, "g_proj", u, d, true);

  comba_tensor *o =
      comba_build_diagonal_decay(build, "recurrent", q, k, v, g, NULL, NULL, (comba_diagonal_decay_attributes){0});
  if (c->use_self_augmentation) o = augment(build, o, q, k, v);
  o = comba_layer_norm(graph, o, NULL, NULL, NORM_EPSILON);
  comba_tensor *y = comba_swiglu(graph, z, comba_reshape(graph, o, x->shape));
  return comba_linear(graph, y, comba_build_residual_weight(build, "out_proj.weight", COMBA_SHAPE(d, d)), NULL);
}

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 8, .minimum = 1, .maximum = 65536,
     .help = "heads, a divisor of hidden_size"},
    {"expand_k", COMBA_FIELD_NUMBER, FIELD(expand_k), .default_value = 0.5, .minimum = 1.0 / 4096, .maximum = 64,
     .help = "query and gate size of all heads = hidden_size * expand_k"},
    {"gate_logit_normalizer", COMBA_FIELD_NUMBER, FIELD(gate_logit_normalizer), .default_value = 16, .minimum = 1e-3,
     .maximum = 1e6, .help = "divisor of the log decay"},
    {"use_short_conv", COMBA_FIELD_BOOLEAN, FIELD(use_short_conv), .default_value = 1,
     .help = "causal depthwise convolution of the input, and silu"},
    {"conv_size", COMBA_FIELD_INTEGER, FIELD(conv_size), .default_value = 4, .minimum = 1, .maximum = 64,
     .help = "taps of the short convolution"},
    {"use_self_augmentation", COMBA_FIELD_BOOLEAN, FIELD(use_self_augmentation), .default_value = 1,
     .help = "what a token adds of its own value to the output"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  if (hidden_size % c->num_heads)
    return comba_fail(COMBA_ERROR_ARGUMENT, "num_heads is %lld, expected a divisor of hidden_size %lld",
                      (long long)c->num_heads, (long long)hidden_size);
  return comba_check_expansion("expand_k", hidden_size, c->expand_k, c->num_heads);
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const double state = (double)(comba_expanded_head_size(hidden_size, c->expand_k, c->num_heads) * hidden_size);
  return (comba_mixer_cost){.state_elements = state, .flops_per_token = 5 * state};
}

const comba_mixer_row comba_mixer_meta_la = {
    .model_type = "meta_la",
    .recurrence = "S_t = S_{t-1} diag(a_t) + v_t (1 - a_t)^T;  o_t = S_t q_t + sigmoid((q_t w (1 - a_t)) v_t)",
    .source = "MetaLA: Unified Optimal Linear Approximation to Softmax Attention Map, arXiv 2411.10741",
    .fields = fields,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
