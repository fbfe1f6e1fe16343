#include "diagonal_recurrence.h"

#include <math.h>

void diagonal_recurrence_run(const diagonal_recurrence *r, double *S) {
  for (int64_t t = 0; t < r->T; t++) {
    const double *q = r->q + t * r->stride_q, *k = r->k + t * r->stride_k, *g = r->g + t * r->stride_g;
    const double *v = r->v + t * r->stride_v;
    for (int64_t j = 0; j < r->V; j++) {
      double read = 0, output = 0;
      for (int64_t i = 0; i < r->K && r->a; i++) {
        const double seen = S[i * r->V + j] * (r->read_after_decay ? exp(g[i]) : 1);
        read += r->a[t * r->stride_a + i] * seen;
      }
      for (int64_t i = 0; i < r->K; i++) {
        double *s = &S[i * r->V + j];
        *s = exp(g[i]) * *s + k[i] * v[j];
        if (r->a) *s += r->b[t * r->stride_b + i] * read;
        output += q[i] * *s;
      }
      r->o[t * r->stride_o + j] = r->scale * output;
    }
  }
}
