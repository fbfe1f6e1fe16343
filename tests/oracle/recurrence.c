#include "recurrence.h"

#include <math.h>

/* x = S^T a */
static double read_state(const recurrence *r, const double *S, const double *a, int64_t column) {
  double sum = 0;
  for (int64_t i = 0; i < r->K; i++) sum += S[i * r->V + column] * a[i];
  return sum;
}

void recurrence_run(const recurrence *r, double *S) {
  for (int64_t t = 0; t < r->T; t++) {
    const double *q = r->q + t * r->key_stride, *k = r->k + t * r->key_stride, *p = r->p + t * r->key_stride;
    const double alpha = exp(r->g[t * r->gate_stride]), beta = r->beta[t * r->gate_stride];
    for (int64_t j = 0; j < r->V; j++) {
      const double feedback = read_state(r, S, p, j) * (r->feedback_after_decay ? alpha : 1);
      const double error = r->v[t * r->value_stride + j] - feedback;
      for (int64_t i = 0; i < r->K; i++) S[i * r->V + j] = alpha * S[i * r->V + j] + beta * k[i] * error;
      r->o[t * r->value_stride + j] = r->scale * read_state(r, S, q, j);
    }
  }
}
