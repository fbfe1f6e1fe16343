/* What surrounds the memory of the mixers that learn at test time (TTT, arXiv 2407.04620), TTT-Linear and TTT-MLP: projections,
 * learned rates, norms and gate, under the names of the released checkpoints. */
#ifndef COMBA_MIXERS_TTT_H
#define COMBA_MIXERS_TTT_H

#include "mixers/mixer.h"
#include "ops/ops.h"

/* The first member of their configs. */
typedef struct comba_ttt {
  int64_t num_heads, mini_batch_size, conv_size;
  double ttt_base_lr, rope_theta;
  bool use_gate, share_qk;
} comba_ttt;

// clang-format off
/* Their rows of a schema, for the member `member` of the struct `type`; base_lr is the default of ttt_base_lr. */
#define COMBA_TTT_FIELDS(type, member, base_lr)                                                                        \
  {"num_heads", COMBA_FIELD_INTEGER, offsetof(type, member.num_heads), .default_value = 32, .minimum = 1,              \
   .maximum = 65536, .help = "heads, a divisor of hidden_size"},                                                       \
  {"mini_batch_size", COMBA_FIELD_INTEGER, offsetof(type, member.mini_batch_size), .default_value = 16, .minimum = 1,  \
   .maximum = 64, .help = "tokens whose gradients are taken at one memory"},                                           \
  {"ttt_base_lr", COMBA_FIELD_NUMBER, offsetof(type, member.ttt_base_lr), .default_value = base_lr, .minimum = 1e-9,   \
   .maximum = 1e3, .help = "the learned rates lie between 0 and this over the head size"},                             \
  {"rope_theta", COMBA_FIELD_NUMBER, offsetof(type, member.rope_theta), .default_value = 10000, .minimum = 1,          \
   .maximum = 1e12, .help = "base of the rotary embedding by the position in the mini-batch"},                         \
  {"use_gate", COMBA_FIELD_BOOLEAN, offsetof(type, member.use_gate), .default_value = 0,                               \
   .help = "gate the normed output with gelu (tanh form)"},                                                            \
  {"share_qk", COMBA_FIELD_BOOLEAN, offsetof(type, member.share_qk), .default_value = 0,                               \
   .help = "q and k are two convolutions of one projection"},                                                          \
  {"conv_size", COMBA_FIELD_INTEGER, offsetof(type, member.conv_size), .default_value = 4, .minimum = 1,               \
   .maximum = 64, .help = "taps of the convolutions of share_qk"}
// clang-format on

/* `check` of a mixer's row; `config` begins with a comba_ttt. */
comba_status comba_ttt_check(const void *config, int64_t hidden_size);

/* Operands of a memory: q, k, v (B,T,H,F), rate (B,T,H), token_offset (mini_batch_size), norm_weight, norm_bias (H,F). */
typedef struct comba_ttt_operands {
  comba_tensor *q, *k, *v, *rate, *token_offset, *norm_weight, *norm_bias;
} comba_ttt_operands;
comba_ttt_operands comba_build_ttt(comba_build *build, const comba_ttt *config, comba_tensor *x);

/* y (B,T,d) = W_o (gate(x) LayerNorm(q + LayerNorm_heads(o))) of what the memory returned for q, o (B,T,H,F). */
comba_tensor *comba_build_ttt_output(comba_build *build, const comba_ttt *config, comba_tensor *x,
                                     const comba_ttt_operands *operands, comba_tensor *o);

#endif
