/* retnet: retention (arXiv 2307.08621).
 *
 *   q, k = rotary(f(W x));  v = W x
 *   S_t = a_h S_{t-1} + k_t v_t^T,  a_h = 1 - 2^(-5-h) of head h = 0, 1, ...;  o_t = K^(-1/2) S_t^T q_t
 *   y = W_o (RMSNorm(o) * silu(W_g x)) */
#include "mixers/mixer.h"
#include "mixers/projection.h"

#include <stddef.h>

enum { FIRST_EXPONENT = 5 }; /* of head 0 */
static const double ROTARY_BASE = 10000;

typedef struct config {
  int64_t num_heads, num_kv_heads;
  double expand_k, expand_v;
  bool use_output_gate;
  int feature_map;
} config;

/* NAME_proj, its feature map, rotated: (B,T,H,K) */
static comba_tensor *project(comba_build *build, const config *c, const char *name, comba_tensor *x, int64_t K) {
  comba_tensor *y = comba_build_projection(build, name, x, c->num_heads, K, 0, false);
  if (c->feature_map >= 0) y = comba_activation(build->graph, y, (comba_function)c->feature_map, 1);
  return comba_rotary(build->graph, y, build->position, build->cu_seqlens, ROTARY_BASE);
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  const int64_t B = build->batch, d = x->shape.size[2], H = c->num_heads;
  const int64_t K = comba_expanded_head_size(d, c->expand_k, c->num_heads),
                V = comba_expanded_head_size(d, c->expand_v, c->num_heads);
  comba_tensor *q = project(build, c, "q", x, K);
  comba_tensor *k = project(build, c, "k", x, K);
  comba_tensor *v = comba_build_projection(build, "v", x, H, V, 0, false);

  comba_tensor *before = comba_build_state(build, "recurrent", COMBA_SHAPE(B, H, K, V)), *after = NULL;
  const comba_scalar_decay_attributes attributes = {.retention = FIRST_EXPONENT, .mode = build->mode};
  comba_tensor *o = comba_scalar_decay(build->graph, q, k, v, NULL, before, build->cu_seqlens, attributes, &after);
  comba_build_update(build, before, after);

  comba_tensor *gate = c->use_output_gate ? comba_build_linear(build, "g_proj", x, H * V, false) : NULL;
  return comba_build_head_output(build, gate ? "g_norm_swish_gate.weight" : "g_norm.weight", o, gate, COMBA_SILU, d);
}

/* order of comba_function */
static const char *const feature_maps[] = {"sigmoid", "silu", "gelu", "tanh", "relu", NULL};

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"expand_k", COMBA_FIELD_NUMBER, FIELD(expand_k), .default_value = 1, .minimum = 1.0 / 4096, .maximum = 64,
     .help = "key size of all heads = hidden_size * expand_k"},
    {"expand_v", COMBA_FIELD_NUMBER, FIELD(expand_v), .default_value = 2, .minimum = 1.0 / 4096, .maximum = 64,
     .help = "value size of all heads = hidden_size * expand_v"},
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 8, .minimum = 1, .maximum = 65536,
     .help = "heads"},
    {"num_kv_heads", COMBA_FIELD_INTEGER, FIELD(num_kv_heads), .default_value = 0, .minimum = 1, .maximum = 65536,
     .nullable = true, .null_value = 0, .help = "null or num_heads"},
    {"feature_map", COMBA_FIELD_CHOICE, FIELD(feature_map), .default_value = -1, .choices = feature_maps,
     .nullable = true, .null_value = -1, .help = "function of q and k before their rotation; null: none"},
    {"use_output_gate", COMBA_FIELD_BOOLEAN, FIELD(use_output_gate), .default_value = 1,
     .help = "gate the normed output with silu"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  comba_status status = comba_check_expansion("expand_k", hidden_size, c->expand_k, c->num_heads);
  if (status == COMBA_OK) status = comba_check_expansion("expand_v", hidden_size, c->expand_v, c->num_heads);
  if (status != COMBA_OK) return status;
  if (comba_expanded_head_size(hidden_size, c->expand_k, c->num_heads) % 2)
    return comba_fail(COMBA_ERROR_ARGUMENT,
                      "hidden_size * expand_k / num_heads is %lld, expected an even number for rotary positions",
                      (long long)comba_expanded_head_size(hidden_size, c->expand_k, c->num_heads));
  if (c->num_kv_heads && c->num_kv_heads != c->num_heads)
    return comba_fail(COMBA_ERROR_ARGUMENT, "num_kv_heads is %lld, expected num_heads %lld", (long long)c->num_kv_heads,
                      (long long)c->num_heads);
  return COMBA_OK;
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const double state = (double)(c->num_heads * comba_expanded_head_size(hidden_size, c->expand_k, c->num_heads) *
                                comba_expanded_head_size(hidden_size, c->expand_v, c->num_heads));
  return (comba_mixer_cost){.state_elements = state, .flops_per_token = 5 * state};
}

const comba_mixer_row comba_mixer_retnet = {
    .model_type = "retnet",
    .recurrence = "S_t = a_h S_{t-1} + v_t k_t^T, a_h = 1 - 2^(-5-h);  o_t = S_t q_t",
    .source = "Retentive Network: A Successor to Transformer for Large Language Models, arXiv 2307.08621",
    .fields = fields,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
