/* What the two forms of the recurrence with scalar decay share: the operands of one call, and the part of them that one task
 * works on.
 *
 * Saved for backward, by both forms alike, so that either backward can follow either forward:
 *   states (slots, HV, K, V)  the state before tokens 0, 64, 128, ... of each sequence: 1/64 of K V values a token. */
#ifndef COMBA_SCAN_SCALAR_DECAY_H
#define COMBA_SCAN_SCALAR_DECAY_H

#include "scan/scalar.h"

enum { Q, KEY, VALUE, GATE, INITIAL_STATE, CU_SEQLENS, INPUTS };
enum { OUTPUT, FINAL_STATE };
enum { STATES };

/* One sequence and head of o. Rows of q, k, v and their gradients, o, gates and saved states are *_stride apart. Gradients
 * are NULL where not wanted. */
typedef struct scalar_decay_head {
  int64_t length, K, V;
  int64_t query_stride, key_stride, value_stride, output_stride, gate_stride, state_stride;
  real scale;
  real constant_gate; /* without g: of this head */
  const real *q, *k, *v, *initial_state;
  const real *g; /* NULL: constant_gate at every token */
  real *o, *final_state, *states;
  const real *output_gradient, *final_state_gradient;
  real *dq, *dk, *dv, *dg, *initial_state_gradient;
  bool accumulate[INPUTS];
} scalar_decay_head;

/* The gate of token t, and those from token t on, *stride apart. */
static inline const real *scalar_decay_gates(const scalar_decay_head *h, int64_t t, int64_t *stride) {
  *stride = h->g ? h->gate_stride : 0;
  return h->g ? h->g + t * h->gate_stride : &h->constant_gate;
}

/* Reals of scratch for each slot. */
int64_t COMBA_VARIANT(comba_scalar_decay_chunk_scratch)(int64_t K, int64_t V, bool backward);
int64_t COMBA_VARIANT(comba_scalar_decay_recurrent_scratch)(int64_t K, int64_t V, bool backward);

/* Forward: o, final state, and what backward needs where head->states is there. Backward: adds to or overwrites each
 * gradient that is wanted. */
void COMBA_VARIANT(comba_scalar_decay_chunk_forward)(const scalar_decay_head *head, real *scratch);
void COMBA_VARIANT(comba_scalar_decay_chunk_backward)(const scalar_decay_head *head, real *scratch);
/* The recurrence has no product across value channels: forward computes columns [first, first + width) alone. */
void COMBA_VARIANT(comba_scalar_decay_recurrent_forward)(const scalar_decay_head *head, int64_t first, int64_t width,
                                                         real *scratch);
void COMBA_VARIANT(comba_scalar_decay_recurrent_backward)(const scalar_decay_head *head, real *scratch);

#endif
