/* The recurrence with scalar decay and no delta term, token by token in double precision: written from the formula, sharing
 * nothing with the library. */
#ifndef COMBA_TESTS_SCALAR_RECURRENCE_H
#define COMBA_TESTS_SCALAR_RECURRENCE_H

#include <stdint.h>

/* One sequence and one head: q, k (T,K), v, o (T,V), g (T), each row `stride` values after the one before. g = NULL: decay
 * `decay` at every token. */
typedef struct scalar_recurrence {
  int64_t T, K, V;
  double scale, decay;
  const double *q, *k, *v, *g;
  int64_t key_stride, value_stride, gate_stride;
  double *o;
} scalar_recurrence;

/* S (K,V): the state before the first token on entry, after the last on return. */
void scalar_recurrence_run(const scalar_recurrence *r, double *S);

#endif
