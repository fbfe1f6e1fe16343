/* Heads that divide hidden_size times a factor among them, with fewer heads for keys and values if asked: gla, linear_attn,
 * retnet, simple_gla. */
#ifndef COMBA_MIXERS_EXPANDED_HEADS_H
#define COMBA_MIXERS_EXPANDED_HEADS_H

#include <stddef.h>

#include "mixers/mixer.h"
#include "ops/ops.h"

/* The first member of their configs. */
typedef struct comba_expanded_heads {
  int64_t num_heads, num_kv_heads;
  double expand_k, expand_v;
} comba_expanded_heads;

// clang-format off
/* Their rows of a schema, for the member `member` of the struct `type`, with their defaults. */
#define COMBA_EXPANDED_HEADS_FIELDS(type, member, HEADS, EXPAND_K, EXPAND_V)                                           \
  {"expand_k", COMBA_FIELD_NUMBER, offsetof(type, member.expand_k), .default_value = EXPAND_K,                         \
   .minimum = 1.0 / 4096, .maximum = 64, .help = "key size of all query heads = hidden_size * expand_k"},              \
  {"expand_v", COMBA_FIELD_NUMBER, offsetof(type, member.expand_v), .default_value = EXPAND_V,                         \
   .minimum = 1.0 / 4096, .maximum = 64, .help = "value size of all query heads = hidden_size * expand_v"},            \
  {"num_heads", COMBA_FIELD_INTEGER, offsetof(type, member.num_heads), .default_value = HEADS, .minimum = 1,           \
   .maximum = 65536, .help = "query heads"},                                                                           \
  {"num_kv_heads", COMBA_FIELD_INTEGER, offsetof(type, member.num_kv_heads), .default_value = 0, .minimum = 1,         \
   .maximum = 65536, .nullable = true, .null_value = 0,                                                                \
   .help = "key and value heads, a divisor of num_heads; null: num_heads. One serves a group of query heads"}
// clang-format on

int64_t comba_kv_heads(const comba_expanded_heads *heads);
/* Of one head. */
int64_t comba_key_size(const comba_expanded_heads *heads, int64_t hidden_size);
int64_t comba_value_size(const comba_expanded_heads *heads, int64_t hidden_size);
/* q (B,T,H,K), k (B,T,HKV,K), v (B,T,HKV,V) = W x; with taps > 0 a causal convolution and silu follow. */
void comba_build_expanded_heads(comba_build *build, const comba_expanded_heads *heads, comba_tensor *x, int64_t taps,
                                comba_tensor **q, comba_tensor **k, comba_tensor **v);
/* `check` and `cost` of a mixer's row; `config` begins with a comba_expanded_heads. */
comba_status comba_expanded_heads_check(const void *config, int64_t hidden_size);
comba_mixer_cost comba_expanded_heads_cost(const void *config, int64_t hidden_size);

/* A function of q and k that has no weights: the field "feature_map", an int, negative for none. fla takes "gelu" from two
 * tables: as its form with tanh (its own table), or as the exact one (that of transformers). */
extern const char *const comba_activation_names[];
#define COMBA_ACTIVATION_MAP_FIELD(type, member)                                                                       \
  {                                                                                                                    \
    "feature_map", COMBA_FIELD_CHOICE, offsetof(type, member), .default_value = -1, .choices = comba_activation_names, \
                                                               .nullable = true, .null_value = -1,                     \
                                                               .help = "function of q and k; null: none"               \
  }
comba_tensor *comba_build_activation_map(comba_build *build, comba_tensor *x, int map, comba_function gelu);

#define COMBA_AFFINE_FIELD(type, member)                                                                               \
  {                                                                                                                    \
    "elementwise_affine", COMBA_FIELD_BOOLEAN, offsetof(type, member),                                                 \
        .default_value = 1, .nullable = true, .help = "false or null: the output norm has no weight"                   \
  }

/* What follows the recurrence: its fields, for the member `member` of the struct `type`. */
typedef struct comba_swish_output {
  bool use_output_gate, elementwise_affine, fuse_norm;
} comba_swish_output;
// clang-format off
#define COMBA_SWISH_OUTPUT_FIELDS(type, member)                                                                        \
  {"use_output_gate", COMBA_FIELD_BOOLEAN, offsetof(type, member.use_output_gate), .default_value = 1,                 \
   .help = "gate the normed output with silu"},                                                                        \
  COMBA_AFFINE_FIELD(type, member.elementwise_affine),                                                                 \
  {"fuse_norm", COMBA_FIELD_BOOLEAN, offsetof(type, member.fuse_norm), .default_value = 1,                             \
   .help = "the weight of a gated output norm is g_norm_swish_gate (true) or g_norm (false)"}
// clang-format on

/* (B,T,d) = W_o (RMSNorm(o) * silu(W_g x)) by head, W_o RMSNorm(o) without a gate. */
comba_tensor *comba_build_swish_output(comba_build *build, const comba_swish_output *output, comba_tensor *x,
                                       comba_tensor *o);

#endif
