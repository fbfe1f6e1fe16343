#include "scalar_recurrence.h"

#include <math.h>

void scalar_recurrence_run(const scalar_recurrence *r, double *S) {
  for (int64_t t = 0; t < r->T; t++) {
    const double *q = r->q + t * r->key_stride, *k = r->k + t * r->key_stride, *v = r->v + t * r->value_stride;
    const double decay = r->g ? exp(r->g[t * r->gate_stride]) : r->decay;
    for (int64_t j = 0; j < r->V; j++) {
      double sum = 0;
      for (int64_t i = 0; i < r->K; i++) {
        S[i * r->V + j] = decay * S[i * r->V + j] + k[i] * v[j];
        sum += q[i] * S[i * r->V + j];
      }
      r->o[t * r->value_stride + j] = r->scale * sum;
    }
  }
}
