#include "mixers/expanded_heads.h"

#include "mixers/projection.h"

const char *const comba_activation_names[] = {"sigmoid", "silu",   "swish", "gelu",       "tanh",
                                              "relu",    "sqrelu", "relu2", "logsigmoid", NULL};
enum { LOG_SIGMOID = 8 }; /* its place among the names: an operator of its own */
static const comba_function activations[] = {COMBA_SIGMOID, COMBA_SILU, COMBA_SILU,         COMBA_GELU,
                                             COMBA_TANH,    COMBA_RELU, COMBA_SQUARED_RELU, COMBA_SQUARED_RELU};

int64_t comba_kv_heads(const comba_expanded_heads *heads) {
  return heads->num_kv_heads ? heads->num_kv_heads : heads->num_heads;
}

int64_t comba_key_size(const comba_expanded_heads *heads, int64_t hidden_size) {
  return comba_expanded_head_size(hidden_size, heads->expand_k, heads->num_heads);
}

int64_t comba_value_size(const comba_expanded_heads *heads, int64_t hidden_size) {
  return comba_expanded_head_size(hidden_size, heads->expand_v, heads->num_heads);
}

void comba_build_expanded_heads(comba_build *build, const comba_expanded_heads *heads, comba_tensor *x, int64_t taps,
                                comba_tensor **q, comba_tensor **k, comba_tensor **v) {
  const int64_t d = x->shape.size[2], HKV = comba_kv_heads(heads), K = comba_key_size(heads, d);
  *q = comba_build_projection(build, "q", x, heads->num_heads, K, taps, taps > 0);
  *k = comba_build_projection(build, "k", x, HKV, K, taps, taps > 0);
  *v = comba_build_projection(build, "v", x, HKV, comba_value_size(heads, d), taps, taps > 0);
}

comba_status comba_expanded_heads_check(const void *config, int64_t hidden_size) {
  const comba_expanded_heads *heads = config;
  comba_status status = comba_check_expansion("expand_k", hidden_size, heads->expand_k, heads->num_heads);
  if (status == COMBA_OK) status = comba_check_expansion("expand_v", hidden_size, heads->expand_v, heads->num_heads);
  if (status != COMBA_OK || heads->num_heads % comba_kv_heads(heads) == 0) return status;
  return comba_fail(COMBA_ERROR_ARGUMENT, "num_kv_heads is %lld, expected a divisor of num_heads %lld",
                    (long long)comba_kv_heads(heads), (long long)heads->num_heads);
}

comba_mixer_cost comba_expanded_heads_cost(const void *config, int64_t hidden_size) {
  const comba_expanded_heads *heads = config;
  const double state =
      (double)(heads->num_heads * comba_key_size(heads, hidden_size) * comba_value_size(heads, hidden_size));
  return (comba_mixer_cost){.state_elements = state, .flops_per_token = 5 * state};
}

comba_tensor *comba_build_activation_map(comba_build *build, comba_tensor *x, int map, comba_function gelu) {
  if (map < 0) return x;
  if (map == LOG_SIGMOID)
    return comba_channel_decay(build->graph, x, NULL, NULL,
                               (comba_channel_decay_attributes){COMBA_CHANNEL_LOG_SIGMOID, 1, -1e30});
  return comba_activation(build->graph, x, activations[map] == COMBA_GELU ? gelu : activations[map], 1);
}

comba_tensor *comba_build_swish_output(comba_build *build, const comba_swish_output *output, comba_tensor *x,
                                       comba_tensor *o) {
  if (!o) return NULL;
  const int64_t channels = o->shape.size[2] * o->shape.size[3];
  const char *name = output->use_output_gate && output->fuse_norm ? "g_norm_swish_gate.weight" : "g_norm.weight";
  comba_tensor *gate = output->use_output_gate ? comba_build_linear(build, "g_proj", x, channels, false) : NULL;
  return comba_build_head_output(build, output->elementwise_affine ? name : NULL, o, gate, COMBA_SILU,
                                 x->shape.size[2]);
}
