/* The engine of delta_rule and scalar_decay on a GPU: chunks of 64 tokens, with the formulas of delta_rule_chunk.c; sequences of a few
 * tokens without a gradient token by token. docs/cuda.md counts its work.
 * Tokens stand in slots (cuda_chunks.h), whose heads are those of the values. */
#ifndef COMBA_SCAN_CUDA_SCALAR_H
#define COMBA_SCAN_CUDA_SCALAR_H

#include "core/cuda_kernel.h"

enum { CUDA_SCALAR_KEYS = 256 }; /* the most that K may be: a state stays in registers */

typedef struct cuda_scalar {
  int64_t batch, length, sequences;         /* B, T, N */
  int64_t q_heads, k_heads, v_heads, heads; /* heads: the most of them, HV */
  int64_t K, V;
  float scale;
  bool delta, after_decay;
  int retention; /* without gates: head h decays by 1 - 2^(-retention-h); 0: not at all */
  const int32_t *cu_seqlens;
  const void *q, *k, *p, *v; /* activations; p NULL: k */
  const float *beta, *g, *initial_state;
  void *o;
  float *final_state;
  /* backward; gradients are NULL where absent or not wanted */
  const void *output_gradient;
  const float *final_state_gradient;
  void *dq, *dk, *dp, *dv;
  float *dbeta, *dg, *initial_state_gradient;
  bool add_q, add_k, add_p, add_v, add_beta, add_g, add_state;
} cuda_scalar;

/* Saved tensors and workspaces, with activations of `type_size` bytes. */
comba_status cuda_scalar_infer(comba_signature *s, const cuda_scalar *problem, int64_t type_size);
/* `kept`: the saved tensor. Without it forward leaves nothing, and backward runs forward's chunks again. */
template <class T> void cuda_scalar_forward(const cuda_scalar *problem, float *kept, float *workspace);
template <class T> void cuda_scalar_backward(const cuda_scalar *problem, float *kept, float *workspace);

#endif
