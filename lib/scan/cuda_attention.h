/* Softmax attention by cuDNN, for the shapes of which it has a plan. */
#ifndef COMBA_SCAN_CUDA_ATTENTION_H
#define COMBA_SCAN_CUDA_ATTENTION_H

#include "core/cuda_kernel.h"

/* Whole sequences of equal length; q, o (B,T,H,D), k, v (B,T,HKV,D) in bfloat16 */
typedef struct attention_shape {
  int64_t batch, length, heads, key_heads, D;
  float scale;
  bool causal;
} attention_shape;

typedef struct attention_operands {
  const void *q, *k, *v, *output_gradient;
  void *o, *dq, *dk, *dv;
  float *lse; /* (B,T,H): ln sum_j e^score; forward may leave it out, NULL */
} attention_operands;

typedef enum attention_pass { ATTENTION_FORWARD, ATTENTION_BACKWARD, ATTENTION_PASSES } attention_pass;

/* Bytes of scratch memory for a pass; -1 where cuDNN has no plan that gives equal results from run to run, and in a build without it.
 * Not while a step is recorded: it makes the plan. */
int64_t attention_cudnn_workspace(const attention_shape *shape, attention_pass pass);
/* Queues a pass, which overwrites gradients; false where the above is -1, or an operand is not aligned to 16 bytes. */
bool attention_cudnn_run(const attention_shape *shape, attention_pass pass, const attention_operands *operands,
                         void *workspace);

#endif
