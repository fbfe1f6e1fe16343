#include "kda.h"

#include <stdio.h>

/* silu(conv(NAME_proj x)), without the convolution where the model has none */
static double *project(oracle_model *oracle, const char *name, const double *x) {
  char linear[32], convolution[32];
  snprintf(linear, sizeof linear, "%s_proj", name);
  double *y = oracle_linear(oracle, linear, x);
  snprintf(linear, sizeof linear, "%s_proj.weight", name);
  const int64_t count = oracle->length * oracle_extent(oracle, linear, 0);
  snprintf(linear, sizeof linear, "%s_conv1d.weight", name);
  snprintf(convolution, sizeof convolution, "%s_conv1d", name);
  if (oracle_has(oracle, linear)) y = oracle_convolution(oracle, convolution, y);
  for (int64_t i = 0; i < count; i++) y[i] = oracle_silu(y[i]);
  return y;
}

static void normalize(double *x, int64_t rows, int64_t K) {
  for (int64_t row = 0; row < rows; row++) {
    double square = 1e-6;
    for (int64_t i = 0; i < K; i++) square += x[row * K + i] * x[row * K + i];
    for (int64_t i = 0; i < K; i++) x[row * K + i] /= sqrt(square);
  }
}

static double *kda(oracle_model *oracle, const double *x) {
  const oracle_kda_config *c = oracle->config;
  const int64_t T = oracle->length, H = c->key_heads, HV = oracle_extent(oracle, "A_log", 0);
  const int64_t K = oracle_extent(oracle, "q_proj.weight", 0) / H, V = oracle_extent(oracle, "o_norm.weight", 0);
  const double *A_log = oracle_weight_of(oracle, "A_log"), *dt_bias = oracle_weight_of(oracle, "dt_bias");
  double *q = project(oracle, "q", x), *k = project(oracle, "k", x), *v = project(oracle, "v", x);
  const double *f = oracle_linear(oracle, "f_proj.1", oracle_linear(oracle, "f_proj.0", x));
  const double *beta = oracle_linear(oracle, "b_proj", x);
  const double *gate = oracle_linear(oracle, "g_proj.1", oracle_linear(oracle, "g_proj.0", x));
  double *o = oracle_zeros(oracle, T * HV * V), *error = oracle_zeros(oracle, V);
  normalize(q, T * H, K);
  normalize(k, T * H, K);
  for (int64_t h = 0; h < HV; h++) {
    double *S = oracle_zeros(oracle, K * V);
    for (int64_t t = 0; t < T; t++) {
      const int64_t row = t * HV + h, key = (t * H + h / (HV / H)) * K;
      const double strength = (c->beta_scale > 0 ? c->beta_scale : 1) * oracle_sigmoid(beta[row]);
      for (int64_t i = 0; i < K; i++) {
        const double u = f[row * K + i] + dt_bias[h * K + i], rate = exp(A_log[h]);
        const double g = c->lower_bound < 0 ? c->lower_bound * oracle_sigmoid(rate * u) : -rate * oracle_softplus(u);
        for (int64_t j = 0; j < V; j++) S[i * V + j] *= exp(g);
      }
      for (int64_t j = 0; j < V; j++) {
        error[j] = v[row * V + j];
        for (int64_t i = 0; i < K; i++) error[j] -= S[i * V + j] * k[key + i];
      }
      for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < V; j++) {
          S[i * V + j] += strength * k[key + i] * error[j];
          o[row * V + j] += S[i * V + j] * q[key + i] / sqrt((double)K);
        }
    }
  }
  double *y = oracle_norm(oracle, "o_norm", o, T * HV, V, oracle->norm_epsilon);
  for (int64_t i = 0; i < T * HV * V; i++) y[i] *= oracle_sigmoid(gate[i]);
  return oracle_linear(oracle, "o_proj", y);
}

const oracle_family oracle_kda = {.mix = kda, .gates = "f_proj"};
