#include "softmax_attention.h"

#include <math.h>
#include <stdlib.h>

static bool sees(const softmax_attention *a, int64_t t, int64_t j) {
  if (!a->causal) return true;
  const int64_t position = a->first + t;
  return j <= position && (a->window == 0 || j > position - a->window);
}

static double dot(const double *x, const double *y, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += x[i] * y[i];
  return sum;
}

/* weight (S): the softmax of row t, 0 where it does not see. */
static void weights(const softmax_attention *a, int64_t t, double *weight) {
  double largest = -INFINITY, sum = 0;
  for (int64_t j = 0; j < a->S; j++) {
    weight[j] = a->scale * dot(a->q + t * a->query_stride, a->k + j * a->key_stride, a->D);
    if (sees(a, t, j)) largest = fmax(largest, weight[j]);
  }
  for (int64_t j = 0; j < a->S; j++) {
    weight[j] = sees(a, t, j) ? exp(weight[j] - largest) : 0;
    sum += weight[j];
  }
  for (int64_t j = 0; j < a->S; j++) weight[j] /= sum;
}

void softmax_attention_run(const softmax_attention *a) {
  double *weight = calloc((size_t)a->S, sizeof *weight);
  for (int64_t t = 0; t < a->T; t++) {
    weights(a, t, weight);
    for (int64_t i = 0; i < a->D; i++) {
      double sum = 0;
      for (int64_t j = 0; j < a->S; j++) sum += weight[j] * a->v[j * a->key_stride + i];
      a->o[t * a->query_stride + i] = sum;
    }
  }
  free(weight);
}

/* With w the weights and do the gradient of row t: dw_j = do . v_j, ds_j = w_j (dw_j - sum_m w_m dw_m). */
void softmax_attention_gradient(const softmax_attention *a, const double *output_gradient, double *dq, double *dk,
                                double *dv) {
  double *weight = calloc((size_t)a->S, sizeof *weight);
  for (int64_t t = 0; t < a->T; t++) {
    const double *gradient = output_gradient + t * a->query_stride;
    double mean = 0;
    weights(a, t, weight);
    for (int64_t j = 0; j < a->S; j++) mean += weight[j] * dot(gradient, a->v + j * a->key_stride, a->D);
    for (int64_t j = 0; j < a->S; j++) {
      const double score = a->scale * weight[j] * (dot(gradient, a->v + j * a->key_stride, a->D) - mean);
      for (int64_t i = 0; i < a->D; i++) {
        dq[t * a->query_stride + i] += score * a->k[j * a->key_stride + i];
        dk[j * a->key_stride + i] += score * a->q[t * a->query_stride + i];
        dv[j * a->key_stride + i] += weight[j] * gradient[i];
      }
    }
  }
  free(weight);
}
