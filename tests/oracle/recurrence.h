/* The delta rule with scalar decay, token by token in double precision: written from the formula, sharing nothing with the
 * library. */
#ifndef COMBA_TESTS_RECURRENCE_H
#define COMBA_TESTS_RECURRENCE_H

#include <stdbool.h>
#include <stdint.h>

/* One sequence and one head: q, k, p (T,K), v, o (T,V), beta, g (T), each row `stride` values after the one before. */
typedef struct recurrence {
  int64_t T, K, V;
  double scale;
  bool feedback_after_decay;
  const double *q, *k, *p, *v, *beta, *g;
  int64_t key_stride, value_stride, gate_stride;
  double *o;
} recurrence;

/* S (K,V): the state before the first token on entry, after the last on return. */
void recurrence_run(const recurrence *r, double *S);

#endif
