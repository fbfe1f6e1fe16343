#include "meta_la.h"

/* (x - mean) / sqrt(variance + 1e-5) in place */
static void normalize(double *x, int64_t size) {
  double mean = 0, variance = 0;
  for (int64_t i = 0; i < size; i++) mean += x[i] / (double)size;
  for (int64_t i = 0; i < size; i++) variance += (x[i] - mean) * (x[i] - mean) / (double)size;
  for (int64_t i = 0; i < size; i++) x[i] = (x[i] - mean) / sqrt(variance + 1e-5);
}

static double *meta_la(oracle_model *oracle, const double *x) {
  const oracle_meta_la_config *c = oracle->config;
  const int64_t T = oracle->length, d = oracle->hidden, H = c->heads, V = d / H;
  const int64_t K = oracle_extent(oracle, "q_proj.weight", 0) / H;
  if (oracle_has(oracle, "conv1d.weight")) {
    double *u = oracle_convolution(oracle, "conv1d", x);
    for (int64_t i = 0; i < T * d; i++) u[i] = oracle_silu(u[i]);
    x = u;
  }
  const double *q = oracle_linear(oracle, "q_proj", x), *gate = oracle_linear(oracle, "k_gate", x);
  const double *v = oracle_linear(oracle, "v_proj", x), *z = oracle_linear(oracle, "g_proj", x);
  const double *w = oracle_has(oracle, "aug_balance") ? oracle_weight_of(oracle, "aug_balance") : NULL;
  double *o = oracle_zeros(oracle, T * d);
  for (int64_t h = 0; h < H; h++) {
    double *S = oracle_zeros(oracle, K * V);
    for (int64_t t = 0; t < T; t++) {
      const int64_t key = (t * H + h) * K, value = (t * H + h) * V;
      double own = 0;
      for (int64_t i = 0; i < K; i++) {
        const double log_decay = -oracle_softplus(-gate[key + i]) / c->normalizer, k = -expm1(log_decay);
        own += w ? q[key + i] * k * w[h * K + i] : 0;
        for (int64_t j = 0; j < V; j++) {
          S[i * V + j] = exp(log_decay) * S[i * V + j] + k * v[value + j];
          o[value + j] += S[i * V + j] * q[key + i] / sqrt((double)K);
        }
      }
      for (int64_t j = 0; j < V && w; j++) o[value + j] += oracle_sigmoid(own * v[value + j]);
      normalize(o + value, V);
    }
  }
  for (int64_t i = 0; i < T * d; i++) o[i] *= oracle_silu(z[i]);
  return oracle_linear(oracle, "out_proj", o);
}

const oracle_family oracle_meta_la = {.mix = meta_la, .gates = "k_gate"};
