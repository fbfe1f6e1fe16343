/* What surrounds the memory of the mixers that learn at test time (TTT, arXiv 2407.04620), TTT-Linear and TTT-MLP: projections,
 * learned rates, norms and gate, under the names of the released checkpoints. */
#ifndef COMBA_MIXERS_TTT_H
#define COMBA_MIXERS_TTT_H

#include "mixers/mixer.h"
#include "ops/ops.h"

/* The config of both. */
typedef struct comba_ttt {
  int64_t num_heads, mini_batch_size, conv_size;
  double ttt_base_lr, rope_theta;
  bool use_gate, share_qk, pre_conv;
} comba_ttt;

/* The schema of it. */
extern const comba_field comba_ttt_fields[];

/* `check` and `front_taps` of a mixer's row. */
comba_status comba_ttt_check(const void *config, int64_t hidden_size);
int64_t comba_ttt_front_taps(const void *config);
/* What their rows share. */
#define COMBA_TTT_ROW                                                                                                  \
  .source = "Learning to (Learn at Test Time): RNNs with Expressive Hidden States, arXiv 2407.04620",                  \
  .fields = comba_ttt_fields, .config_size = sizeof(comba_ttt), .check = comba_ttt_check,                              \
  .front_taps = comba_ttt_front_taps

/* Operands of a memory: q, k, v (B,T,H,F), rate (B,T,H), token_offset (mini_batch_size), norm_weight, norm_bias (H,F). */
typedef struct comba_ttt_operands {
  comba_tensor *q, *k, *v, *rate, *token_offset, *norm_weight, *norm_bias;
} comba_ttt_operands;
/* Them, in the initialiser of the operands of either memory. */
#define COMBA_TTT_MEMORY_OPERANDS(t)                                                                                   \
  .q = (t).q, .k = (t).k, .v = (t).v, .rate = (t).rate, .token_offset = (t).token_offset,                              \
  .norm_weight = (t).norm_weight, .norm_bias = (t).norm_bias
comba_ttt_operands comba_build_ttt(comba_build *build, const comba_ttt *config, comba_tensor *x);

/* y (B,T,d) = W_o (gate(x) LayerNorm(q + LayerNorm_heads(o))) of what the memory returned for q, o (B,T,H,F). */
comba_tensor *comba_build_ttt_output(comba_build *build, const comba_ttt *config, comba_tensor *x,
                                     const comba_ttt_operands *operands, comba_tensor *o);

#endif
