/* The recurrence with diagonal decay and an optional low-rank term, token by token in double precision: written from the
 * formula, sharing nothing with the library. */
#ifndef COMBA_TESTS_DIAGONAL_RECURRENCE_H
#define COMBA_TESTS_DIAGONAL_RECURRENCE_H

#include <stdbool.h>
#include <stdint.h>

/* One sequence and one head: q, k, g, a, b (T,K), v, o (T,V); rows of x are stride_x values apart. a = NULL: no low-rank
 * term. */
typedef struct diagonal_recurrence {
  int64_t T, K, V;
  double scale;
  bool read_after_decay;
  const double *q, *k, *v, *g, *a, *b;
  int64_t stride_q, stride_k, stride_v, stride_g, stride_a, stride_b, stride_o;
  double *o;
} diagonal_recurrence;

/* S (K,V): the state before the first token on entry, after the last on return. */
void diagonal_recurrence_run(const diagonal_recurrence *r, double *S);

#endif
