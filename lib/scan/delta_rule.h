/* What the two forms of the delta rule share: the operands of one call, and the part of them that one task works on.
 *
 * Saved for backward, by both forms alike, so that either backward can follow either forward:
 *   states (slots, HV, K, V)  the state before tokens 0, 64, 128, ... of each sequence: 1/64 of K V values a token;
 *   errors (B,T,HV,V)         e_t = v_t - x_t: with them a state follows from the one before without reading it twice,
 *                             and the gradient of beta needs no division by beta.
 * The C x C matrices of a chunk are computed again: cheaper than 3 * 64 values a token and head. */
#ifndef COMBA_SCAN_DELTA_RULE_H
#define COMBA_SCAN_DELTA_RULE_H

#include "scan/scalar.h"

enum { Q, KEY, P, VALUE, BETA, GATE, INITIAL_STATE, CU_SEQLENS, INPUTS };
enum { OUTPUT, FINAL_STATE };
enum { STATES, ERRORS };

/* One sequence and value head. Rows of q, k, p and their gradients are key_stride apart, those of v, o, errors
 * value_stride, entries of beta and g value_heads, saved states state_stride. Gradients are NULL where not wanted. */
typedef struct delta_rule_head {
  int64_t length, K, V, key_stride, value_stride, value_heads, state_stride;
  real scale;
  bool after_decay;
  const real *q, *k, *p, *v, *beta, *g, *initial_state;
  real *o, *final_state, *states, *errors;
  const real *output_gradient, *final_state_gradient;
  real *dq, *dk, *dp, *dv, *dbeta, *dg, *initial_state_gradient;
  bool accumulate[INPUTS];
} delta_rule_head;

/* Reals of scratch for each slot. */
int64_t COMBA_VARIANT(comba_delta_rule_chunk_scratch)(int64_t K, int64_t V, bool backward);
int64_t COMBA_VARIANT(comba_delta_rule_recurrent_scratch)(int64_t K, int64_t V, bool backward);

/* Forward: o, final state, and what backward needs where head->states is there. Backward: adds to or overwrites each
 * gradient that is wanted. */
void COMBA_VARIANT(comba_delta_rule_chunk_forward)(const delta_rule_head *head, real *scratch);
void COMBA_VARIANT(comba_delta_rule_chunk_backward)(const delta_rule_head *head, real *scratch);
/* The recurrence has no product across value channels: forward computes columns [first, first + width) alone. */
void COMBA_VARIANT(comba_delta_rule_recurrent_forward)(const delta_rule_head *head, int64_t first, int64_t width,
                                                       real *scratch);
void COMBA_VARIANT(comba_delta_rule_recurrent_backward)(const delta_rule_head *head, real *scratch);

#endif
