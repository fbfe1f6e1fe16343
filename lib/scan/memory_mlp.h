/* What the row of the two-layer memory and its kernels share: the operands of one call, and the part of them that one task
 * works on.
 *
 * A memory is P = F M + M + M F + F numbers, w1 (F,M), b1 (M), w2 (M,F), b2 (F) one after the other; with a map these are A, and
 * f(A) is what is read. A state is two of them, and with retention one number more:
 *   offset    the memory at the start of the current chunk, less the learned initial one: a state of zeros is the beginning;
 *   gathered  the gradients of the tokens of this chunk so far, each times its rate and what retention has left of it;
 *   kept      what retention has left of the memory at the chunk's start, less 1.
 * The last two are not read at the start of a chunk.
 *
 * Saved for backward: the memory before every GROUP chunks. It is large (8 F^2 numbers), and each group's other memories
 * follow from it at less than the cost of a forward pass. */
#ifndef COMBA_SCAN_MEMORY_MLP_H
#define COMBA_SCAN_MEMORY_MLP_H

#include "scan/memory_mlp_map.h"
#include "scan/normed_loss.h"
#include "scan/scan.h"

enum {
  Q,
  KEY,
  VALUE,
  RATE,
  RETENTION,
  THRESHOLD,
  TOKEN_OFFSET,
  NORM_WEIGHT,
  NORM_BIAS,
  W1,
  B1,
  W2,
  B2,
  INITIAL_STATE,
  POSITION,
  CU_SEQLENS,
  INPUTS
};
enum { OUTPUT, FINAL_STATE };
enum { MEMORIES };

enum { GROUP = 4 }; /* chunks between saved memories */

static inline int64_t memory_mlp_size(int64_t F, int64_t M) {
  return 2 * F * M + M + F;
}

/* One sequence and head. Rows of q, k, v, o and their gradients are `stride` apart, entries of the gates `gate_stride`, saved
 * memories `memory_stride`. What is absent or not wanted is NULL. */
typedef struct memory_mlp_head {
  int64_t length, F, M;
  int64_t chunk; /* C */
  int64_t phase; /* of the first token in its chunk */
  int64_t stride, gate_stride, memory_stride;
  bool by_token; /* forward, one token at a time */
  bool mapped;
  memory_mlp_map map;
  normed_loss loss;
  const real *q, *k, *v, *rate, *retention, *threshold, *token_offset, *w1, *b1, *w2, *b2, *initial_state;
  real *o, *final_state, *memories;
  const real *output_gradient, *final_state_gradient;
  real *dq, *dk, *dv, *drate, *dretention, *dthreshold, *initial_state_gradient;
  real *parameter_gradient; /* of the memory (P), norm_weight (F), norm_bias (F), token_offset (C): added to */
  bool accumulate[INPUTS];
} memory_mlp_head;

static inline int64_t memory_mlp_parameters(int64_t F, int64_t M, int64_t chunk) {
  return memory_mlp_size(F, M) + 2 * F + chunk;
}

/* Reals of scratch for each slot. */
int64_t COMBA_VARIANT(comba_memory_mlp_scratch)(int64_t F, int64_t M, int64_t chunk, bool mapped, bool backward);

void COMBA_VARIANT(comba_memory_mlp_forward)(const memory_mlp_head *head, real *scratch);
void COMBA_VARIANT(comba_memory_mlp_backward)(const memory_mlp_head *head, real *scratch);

#endif
