/* transformer: softmax attention with rotary positions, grouped key/value heads, an optional window and q/k norm
 * (Transformer++: the Llama block). Hybrid layers of other models use the same code. */
#include "mixers/attention.h"
#include "mixers/projection.h"

#include <stddef.h>
#include <stdio.h>

/* fla fixes this one, whatever norm_eps says */
static const double QK_NORM_EPSILON = 1e-5;

/* NAME_proj, heads of D, optionally convolved (without silu, so that logits keep both signs), normed per head and rotated:
 * (B,T,heads,D) */
static comba_tensor *project(comba_build *build, const comba_attention_config *config, comba_tensor *x,
                             const char *name, int64_t heads, int64_t head_dim, const char *norm, bool rotate) {
  comba_graph *graph = build->graph;
  char linear[16], convolution[16];
  snprintf(linear, sizeof linear, "%s_proj", name);
  snprintf(convolution, sizeof convolution, "%s_conv1d", name);
  comba_tensor *y = comba_build_linear(build, linear, x, heads * head_dim, config->qkv_bias);
  if (config->qkv_conv_size) y = comba_build_convolution(build, convolution, y, config->qkv_conv_size, false, false);
  y = comba_reshape(graph, y, COMBA_SHAPE(build->batch, build->length, heads, head_dim));
  if (config->qk_norm && norm)
    y = comba_rms_norm(graph, y, NULL, comba_build_vector(build, norm, head_dim, 1), QK_NORM_EPSILON, NULL);
  if (rotate && config->use_rope) y = comba_rotary(graph, y, build->position, build->cu_seqlens, config->rope_theta);
  return y;
}

comba_tensor *comba_build_attention(comba_build *build, const comba_attention_config *config, comba_tensor *x) {
  if (!x) return NULL;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, T = build->length, d = x->shape.size[2];
  const int64_t H = config->num_heads, HKV = config->num_kv_heads ? config->num_kv_heads : H, D = d / H;
  comba_tensor *q = project(build, config, x, "q", H, D, "q_norm.weight", true);
  comba_tensor *k = project(build, config, x, "k", HKV, D, "k_norm.weight", true);
  comba_tensor *v = project(build, config, x, "v", HKV, D, NULL, false);

  const comba_attention_attributes attributes = {0, build->causal, build->causal ? config->window_size : 0};
  const int64_t rows = attributes.window ? attributes.window : build->capacity;
  comba_tensor *keys = comba_build_state(build, "key", COMBA_SHAPE(B, rows, HKV, D));
  comba_tensor *values = comba_build_state(build, "value", COMBA_SHAPE(B, rows, HKV, D));
  comba_tensor *o;
  if (keys) {
    comba_tensor *caches[2] = {NULL, NULL};
    o = comba_attention_decode(graph, q, k, v, keys, values, build->position, attributes, caches);
    comba_build_update(build, keys, caches[0]);
    comba_build_update(build, values, caches[1]);
  } else {
    o = comba_attention(graph, q, k, v, build->cu_seqlens, attributes);
  }
  o = comba_reshape(graph, o, COMBA_SHAPE(B, T, d));
  return comba_linear(graph, o, comba_build_residual_weight(build, "o_proj.weight", COMBA_SHAPE(d, d)), NULL);
}

#define FIELD(member) offsetof(comba_attention_config, member)
static const comba_field fields[] = {
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 32, .minimum = 1, .maximum = 65536,
     .help = "query heads; hidden_size must be a multiple"},
    {"num_kv_heads", COMBA_FIELD_INTEGER, FIELD(num_kv_heads), .default_value = 0, .minimum = 1, .maximum = 65536,
     .nullable = true, .null_value = 0, .help = "key/value heads, a divisor of num_heads; null: num_heads"},
    {"qkv_bias", COMBA_FIELD_BOOLEAN, FIELD(qkv_bias), .default_value = 0,
     .help = "biases of the q, k and v projections"},
    {"qk_norm", COMBA_FIELD_BOOLEAN, FIELD(qk_norm), .default_value = 0,
     .help = "RMSNorm of each head's queries and keys (epsilon 1e-5)"},
    {"window_size", COMBA_FIELD_INTEGER, FIELD(window_size), .default_value = 0, .minimum = 1, .maximum = 1 << 30,
     .nullable = true, .null_value = 0,
     .help = "a token sees itself and the window_size - 1 before it; null: all before it"},
    {"rope_theta", COMBA_FIELD_NUMBER, FIELD(rope_theta), .default_value = 10000, .minimum = 1e-6, .maximum = 1e12,
     .help = "base of the rotary positions"},
    {"use_rope", COMBA_FIELD_BOOLEAN, FIELD(use_rope), .default_value = 1, .help = "rotary positions"},
    {"qkv_conv_size", COMBA_FIELD_INTEGER, FIELD(qkv_conv_size), .default_value = 0, .minimum = 1, .maximum = 64,
     .nullable = true, .null_value = 0,
     .help = "taps of a causal depthwise convolution of q, k and v, without silu; of our own. null: none"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const comba_attention_config *config = opaque;
  const int64_t kv = config->num_kv_heads ? config->num_kv_heads : config->num_heads;
  if (hidden_size % config->num_heads)
    return comba_fail(COMBA_ERROR_ARGUMENT, "num_heads is %lld, expected a divisor of hidden_size %lld",
                      (long long)config->num_heads, (long long)hidden_size);
  if (config->use_rope && hidden_size / config->num_heads % 2)
    return comba_fail(COMBA_ERROR_ARGUMENT,
                      "hidden_size / num_heads is %lld, expected an even number for rotary positions",
                      (long long)(hidden_size / config->num_heads));
  if (config->num_heads % kv)
    return comba_fail(COMBA_ERROR_ARGUMENT, "num_kv_heads is %lld, expected a divisor of num_heads %lld", (long long)kv,
                      (long long)config->num_heads);
  return COMBA_OK;
}

static comba_tensor *build_mixer(comba_build *build, const void *config, comba_tensor *x) {
  return comba_build_attention(build, config, x);
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const comba_attention_config *config = opaque;
  const int64_t kv = config->num_kv_heads ? config->num_kv_heads : config->num_heads;
  const double row = 2.0 * (double)(hidden_size / config->num_heads * kv);
  return (comba_mixer_cost){.state_elements = row * (config->window_size ? (double)config->window_size : 1),
                            .state_grows = !config->window_size,
                            .flops_per_token =
                                4.0 * (double)hidden_size * (config->window_size ? (double)config->window_size : 1)};
}

const comba_mixer_row comba_mixer_transformer = {
    .model_type = "transformer",
    .recurrence = "S_t = S_{t-1}.append(k_t, v_t);  o_t = softmax(q_t K^T / sqrt(D)) V",
    .source = "Vaswani et al. 2017, arXiv 1706.03762; Touvron et al. 2023, arXiv 2302.13971",
    .fields = fields,
    .config_size = sizeof(comba_attention_config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
