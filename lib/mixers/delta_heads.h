/* Heads, gates and engine of the mixers on the delta rule: Comba, Gated DeltaNet, DeltaNet. */
#ifndef COMBA_MIXERS_DELTA_HEADS_H
#define COMBA_MIXERS_DELTA_HEADS_H

#include "mixers/mixer.h"
#include "ops/ops.h"

/* Under the root of the norm of q, k and p; fla fixes it, whatever norm_eps says. */
#define COMBA_L2_EPSILON 1e-6

/* A parameter (heads) on which weight decay does not act. */
comba_tensor *comba_build_head_scalar(comba_build *build, const char *name, int64_t heads,
                                      comba_distribution distribution, double value);

/* Log decay (B,T,HV) from a (B,T,HV), with A_log and dt_bias of its own. */
comba_tensor *comba_build_decay_gate(comba_build *build, comba_tensor *a, comba_decay_kind kind);

/* comba_delta_rule (ops/ops.h) from the state "recurrent" of a decoder, which is updated; p NULL: k. */
comba_tensor *comba_build_delta_rule(comba_build *build, comba_tensor *q, comba_tensor *k, comba_tensor *p,
                                     comba_tensor *v, comba_tensor *beta, comba_tensor *g, bool feedback_after_decay);

/* Heads as Comba and Gated DeltaNet have them: the first member of their configs. */
typedef struct comba_heads {
  int64_t head_dim, num_heads, num_v_heads, conv_size;
  double expand_v;
  bool use_short_conv;
} comba_heads;

// clang-format off
/* Their rows of a schema, for the member `member` of the struct `type`. */
#define COMBA_HEADS_FIELDS(type, member)                                                                               \
  {"head_dim", COMBA_FIELD_INTEGER, offsetof(type, member.head_dim), .default_value = 256, .minimum = 1,               \
   .maximum = 4096, .help = "key size of a head"},                                                                     \
  {"num_heads", COMBA_FIELD_INTEGER, offsetof(type, member.num_heads), .default_value = 6, .minimum = 1,               \
   .maximum = 65536, .help = "query and key heads"},                                                                   \
  {"num_v_heads", COMBA_FIELD_INTEGER, offsetof(type, member.num_v_heads), .default_value = 0, .minimum = 1,           \
   .maximum = 65536, .nullable = true, .null_value = 0,                                                                \
   .help = "value heads, a multiple of num_heads; null: num_heads. q and k of a head serve its group of value heads"}, \
  {"expand_v", COMBA_FIELD_NUMBER, offsetof(type, member.expand_v), .default_value = 2, .minimum = 1.0 / 4096,         \
   .maximum = 64, .help = "value size of a head = head_dim * expand_v"},                                               \
  {"use_short_conv", COMBA_FIELD_BOOLEAN, offsetof(type, member.use_short_conv), .default_value = 1,                   \
   .help = "causal depthwise convolution of q, k and v"},                                                              \
  {"conv_size", COMBA_FIELD_INTEGER, offsetof(type, member.conv_size), .default_value = 4, .minimum = 1,               \
   .maximum = 64, .help = "taps of the short convolution"}
// clang-format on

int64_t comba_value_heads(const comba_heads *heads);
int64_t comba_value_dim(const comba_heads *heads);
/* q, k (B,T,H,K) and v (B,T,HV,V) = silu(conv(W x)); q and k divided by the length of each head if asked */
void comba_build_projections(comba_build *build, const comba_heads *heads, comba_tensor *x, bool unit, comba_tensor **q,
                             comba_tensor **k, comba_tensor **v);
/* `check` and `cost` of a mixer's row; `config` begins with a comba_heads. */
comba_status comba_heads_check(const void *config, int64_t hidden_size);
comba_mixer_cost comba_heads_cost(const void *config, int64_t hidden_size);

/* Of the delta rule token by token: a state of `elements` numbers is read, corrected and read again. */
comba_mixer_cost comba_delta_rule_cost(double elements);

#endif
