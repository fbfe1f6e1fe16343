/* What surrounds the matrix memory of Titans and of the MIRAS mixers: projections, gates, first memory, output. */
#ifndef COMBA_MIXERS_MEMORY_HEADS_H
#define COMBA_MIXERS_MEMORY_HEADS_H

#include "mixers/mixer.h"
#include "ops/ops.h"

/* The first member of their configs. */
typedef struct comba_memory_heads {
  int64_t num_heads, head_dim, conv_size, chunk_size;
  double expand_v, base_lr;
  bool use_short_conv, use_output_gate, learn_memory;
} comba_memory_heads;

// clang-format off
/* Their rows of a schema, for the member `member` of the struct `type`. */
#define COMBA_MEMORY_HEADS_FIELDS(type, member)                                                                        \
  {"num_heads", COMBA_FIELD_INTEGER, offsetof(type, member.num_heads), .default_value = 16, .minimum = 1,              \
   .maximum = 65536, .help = "heads, each with a memory of its own"},                                                  \
  {"head_dim", COMBA_FIELD_INTEGER, offsetof(type, member.head_dim), .default_value = 64, .minimum = 1,                \
   .maximum = 4096, .help = "key size of a head"},                                                                     \
  {"expand_v", COMBA_FIELD_NUMBER, offsetof(type, member.expand_v), .default_value = 1, .minimum = 1.0 / 4096,         \
   .maximum = 64, .help = "value size of a head = head_dim * expand_v"},                                               \
  {"use_short_conv", COMBA_FIELD_BOOLEAN, offsetof(type, member.use_short_conv), .default_value = 1,                   \
   .help = "causal depthwise convolution of q, k and v"},                                                              \
  {"conv_size", COMBA_FIELD_INTEGER, offsetof(type, member.conv_size), .default_value = 4, .minimum = 1,               \
   .maximum = 64, .help = "taps of the short convolution"},                                                            \
  {"use_output_gate", COMBA_FIELD_BOOLEAN, offsetof(type, member.use_output_gate), .default_value = 1,                 \
   .help = "gate the normed output with silu"},                                                                        \
  {"chunk_size", COMBA_FIELD_INTEGER, offsetof(type, member.chunk_size), .default_value = 16, .minimum = 1,            \
   .maximum = 64, .help = "tokens whose gradients are taken at one memory; 1: the recurrence token by token"},         \
  {"base_lr", COMBA_FIELD_NUMBER, offsetof(type, member.base_lr), .default_value = 0, .minimum = 1e-9, .maximum = 1e3, \
   .nullable = true, .null_value = 0,                                                                                  \
   .help = "the rates lie between 0 and this; null: what keeps a chunk of one key from passing its target"},           \
  {"learn_memory", COMBA_FIELD_BOOLEAN, offsetof(type, member.learn_memory), .default_value = 1,                       \
   .help = "the first memory is a parameter; false: zeros"}
// clang-format on

int64_t comba_memory_value_dim(const comba_memory_heads *heads);
/* `check` and `cost` of a mixer's row; `config` begins with a comba_memory_heads. */
comba_status comba_memory_heads_check(const void *config, int64_t hidden_size);
comba_mixer_cost comba_memory_heads_cost(const void *config, int64_t hidden_size);

/* (B,T,H) = f(NAME_proj x + bias) scale, a gate a head. */
comba_tensor *comba_build_memory_gate(comba_build *build, const char *name, comba_tensor *x, int64_t heads,
                                      comba_function function, double scale);
/* Log decay (B,T,H) = ln sigmoid(NAME_proj x + NAME_bias), the bias starting at `bias`. */
comba_tensor *comba_build_memory_decay(comba_build *build, const char *name, comba_tensor *x, int64_t heads,
                                       double bias);

/* q, k, v, rate, retention and the first memory, drawn with `deviation`. The rate is base_lr sigmoid(rate_proj x) `scale`, and
 * base_lr by default 1 / (slope chunk_size), for a loss whose gradient is about `slope` times an error of size one. */
comba_memory_operands comba_build_memory_heads(comba_build *build, const comba_memory_heads *heads, comba_tensor *x,
                                               double slope, double scale, double deviation);
/* y (B,T,d): the memory's output, normed, gated and projected; the state "memory" of a decoder is updated. */
comba_tensor *comba_build_memory_output(comba_build *build, const comba_memory_heads *heads, comba_tensor *x,
                                        comba_memory_operands operands, comba_memory_attributes attributes);
/* y (B,T,d) of what a memory returned, o (B,T,H,V): normed, gated and projected. */
comba_tensor *comba_build_memory_gated(comba_build *build, const comba_memory_heads *heads, comba_tensor *x,
                                       comba_tensor *o);

#endif
