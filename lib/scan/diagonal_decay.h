/* What the two forms of the recurrence with diagonal decay share: the operands of one call, and the part of them that one
 * task works on.
 *
 * Every operand may have heads of its own: with H the largest number, head h reads head h / (H / heads) of each. A task is one
 * (sequence, head) in forward, and one sequence and all heads that share an operand in backward, where it walks them in order:
 * the gradient of a shared operand is their sum.
 *
 * q and a read the state, k and b write to it: both forms treat them as lists of readers and writers, of one entry each
 * without the low-rank term, and of two readers and one writer for the delta rule. a reads the state before token t is written, and (by default) before its decay: it lags.
 *
 * Saved for backward, by both forms alike, so that either backward can follow either forward:
 *   states (slots, H, K, V)  the state before tokens 0, 64, 128, ... of each sequence;
 *   reads (B,T,H,V)          r_t = S_{t-1}^T a_t, the value that b_t writes, or without b v_t - r_t, which k_t writes; only
 *                            with a. With it a state follows from the one before without reading it first. */
#ifndef COMBA_SCAN_DIAGONAL_DECAY_H
#define COMBA_SCAN_DIAGONAL_DECAY_H

#include "scan/scan.h"

enum { Q, KEY, VALUE, GATE, A, B, INITIAL_STATE, CU_SEQLENS, INPUTS };
enum { OUTPUT, FINAL_STATE };
enum { STATES, READS };
enum { OPERANDS = B + 1 }; /* those with a row a token and head */

/* The shape of the problem. */
typedef struct diagonal_decay_size {
  int64_t sequences, tokens; /* N; B T */
  int64_t length;            /* tokens of each sequence; with cu_seqlens, of all of them */
  int64_t heads[OPERANDS];   /* of each operand; 0: absent */
  int64_t most, least;       /* H; the fewest heads of an operand */
  int64_t K, V;
  int64_t states; /* saved states a head */
  int readers, writers;
} diagonal_decay_size;

/* One sequence and head. Rows of operand i and of its gradient are stride[i] apart, those of o, reads and the gradient of o
 * output_stride, saved states state_stride. Gradients are NULL where not wanted. */
typedef struct diagonal_decay_head {
  int64_t length, K, V, stride[OPERANDS], output_stride, state_stride;
  real scale;
  int readers, writers; /* 1 or 2: q, a; k, b. 2 and 1: the delta rule, where k writes v - r */
  bool after_decay;     /* a reads the decayed state */
  const real *operand[OPERANDS];
  real *gradient[OPERANDS];
  bool accumulate[INPUTS];
  const real *initial_state, *output_gradient, *final_state_gradient;
  real *o, *final_state, *states, *reads, *initial_state_gradient;
} diagonal_decay_head;

/* Reals of scratch for each slot. */
int64_t COMBA_VARIANT(comba_diagonal_decay_chunk_scratch)(int64_t K, int64_t V, bool backward);
int64_t COMBA_VARIANT(comba_diagonal_decay_recurrent_scratch)(int64_t K, int64_t V, bool backward);

/* Forward: o, final state, and what backward needs where head->states is there. Backward: adds to or overwrites each
 * gradient that is wanted. */
void COMBA_VARIANT(comba_diagonal_decay_chunk_forward)(const diagonal_decay_head *head, real *scratch);
void COMBA_VARIANT(comba_diagonal_decay_chunk_backward)(const diagonal_decay_head *head, real *scratch);
/* The recurrence has no product across value channels: forward computes columns [first, first + width) alone. */
void COMBA_VARIANT(comba_diagonal_decay_recurrent_forward)(const diagonal_decay_head *head, int64_t first,
                                                           int64_t width, real *scratch);
void COMBA_VARIANT(comba_diagonal_decay_recurrent_backward)(const diagonal_decay_head *head, real *scratch);

#endif
