#include "comba_model.h"

#include <stdio.h>
#include <string.h>

#include "recurrence.h"

static const double L2_EPSILON = 1e-6;

/* x / sqrt(sum x^2 + epsilon) or x / sum x, row by row */
static void normalize(const oracle_config *c, double *x, int64_t rows, int64_t size) {
  for (int64_t r = 0; r < rows; r++) {
    double sum = 0;
    for (int64_t i = 0; i < size; i++) sum += x[r * size + i] * (c->sum_norm ? 1 : x[r * size + i]);
    for (int64_t i = 0; i < size; i++) x[r * size + i] /= c->sum_norm ? sum : sqrt(sum + L2_EPSILON);
  }
}

static double activate(oracle_activation activation, double x) {
  switch (activation) {
  case ORACLE_ACTIVATION_RELU: return x > 0 ? x : 0;
  case ORACLE_ACTIVATION_ELU: return x > 0 ? x + 1 : exp(x);
  case ORACLE_ACTIVATION_IDENTITY: return x;
  default: return oracle_silu(x);
  }
}

/* f of W x, after a causal convolution where there are taps */
static double *features(oracle_model *oracle, char which, const double *x, int64_t channels) {
  const oracle_config *c = oracle->config;
  char name[16];
  snprintf(name, sizeof name, "%c_proj", which);
  double *y = oracle_linear(oracle, name, x);
  snprintf(name, sizeof name, "%c_conv1d", which);
  if (c->taps) y = oracle_convolution(oracle, name, y);
  const oracle_activation activation = which == 'v' ? ORACLE_ACTIVATION_SILU : c->activation;
  for (int64_t i = 0; i < oracle->length * channels; i++) y[i] = activate(activation, y[i]);
  return y;
}

/* ln alpha (T,HV) */
static double *log_decay(oracle_model *oracle, const double *x) {
  const oracle_config *c = oracle->config;
  const int64_t HV = c->value_heads, count = oracle->length * HV;
  if (c->decay == ORACLE_DECAY_ABSENT) return oracle_zeros(oracle, count);
  const double *A_log = oracle_weight_of(oracle, "A_log"), *dt_bias = oracle_weight_of(oracle, "dt_bias");
  double *g = oracle_linear(oracle, "a_proj", x);
  for (int64_t i = 0; i < count; i++) {
    const double bias = dt_bias[i % HV], rate = exp(A_log[i % HV]), u = g[i] + bias;
    switch (c->decay) {
    case ORACLE_DECAY_MAMBA2: g[i] = -rate * oracle_softplus(u); break;
    case ORACLE_DECAY_SIGMOID: g[i] = -oracle_softplus(-u); break;
    case ORACLE_DECAY_CONSTANT: g[i] = -rate * oracle_softplus(bias); break;
    default: g[i] = 0; break;
    }
  }
  return g;
}

/* q, k (T,H,K) become what the recurrence reads; returns p (T,H,K). */
static double *control(oracle_model *oracle, double *q, double *k) {
  const oracle_config *c = oracle->config;
  const int64_t H = c->heads, K = c->key_size, rows = oracle->length * H;
  const double *decay = c->no_inner_decay ? NULL : oracle_weight_of(oracle, "decay");
  const double *D = c->no_correction ? NULL : oracle_weight_of(oracle, "D");
  double *p = oracle_zeros(oracle, rows * K), *raw = oracle_zeros(oracle, rows * K);
  if (c->correction_after_norm) {
    normalize(c, q, rows, K);
    normalize(c, k, rows, K);
  }
  for (int64_t i = 0; i < rows * K; i++) {
    const int64_t h = i / K % H;
    const double scaled = decay ? oracle_sigmoid(decay[h]) * k[i] : k[i];
    if (D) q[i] -= D[h] * scaled;
  }
  if (!c->correction_after_norm) normalize(c, q, rows, K);
  memcpy(raw, k, (size_t)(rows * K) * sizeof *raw);
  if (!c->correction_after_norm) normalize(c, k, rows, K);
  for (int64_t i = 0; i < rows * K; i++) {
    const int64_t h = i / K % H;
    const double b = decay && !c->no_feedback_decay ? oracle_sigmoid(decay[h]) : 1;
    p[i] = b * (c->feedback_not_unit ? k[i] : raw[i]);
  }
  if (!c->feedback_not_unit) normalize(c, p, rows, K);
  return p;
}

/* o (T,HV,V) */
static double *recur(oracle_model *oracle, const double *q, const double *k, const double *p, const double *v,
                     const double *beta, const double *g) {
  const oracle_config *c = oracle->config;
  const int64_t T = oracle->length, H = c->heads, HV = c->value_heads, K = c->key_size, V = c->value_size;
  double *o = oracle_zeros(oracle, T * HV * V);
  for (int64_t h = 0; h < HV; h++) {
    const int64_t key = h / (HV / H) * K, value = h * V;
    const recurrence head = {T,
                             K,
                             V,
                             1 / sqrt((double)K),
                             c->feedback_after_decay,
                             q + key,
                             k + key,
                             p + key,
                             v + value,
                             beta + h,
                             g + h,
                             H * K,
                             HV * V,
                             HV,
                             o + value};
    recurrence_run(&head, oracle_zeros(oracle, K * V));
  }
  return o;
}

static double *mix(oracle_model *oracle, const double *x) {
  const oracle_config *c = oracle->config;
  const int64_t T = oracle->length, HV = c->value_heads, V = c->value_size;
  double *q = features(oracle, 'q', x, c->heads * c->key_size), *k = features(oracle, 'k', x, c->heads * c->key_size);
  const double *v = features(oracle, 'v', x, HV * V);
  double *beta = c->fixed_beta ? oracle_zeros(oracle, T * HV) : oracle_linear(oracle, "b_proj", x);
  const double largest = c->beta_scale > 0 ? c->beta_scale : 1;
  for (int64_t i = 0; i < T * HV; i++) beta[i] = largest * (c->fixed_beta ? 1 : oracle_sigmoid(beta[i]));
  const double *g = log_decay(oracle, x), *p = control(oracle, q, k);
  double *n = oracle_norm(oracle, "o_norm", recur(oracle, q, k, p, v, beta, g), T * HV, V, oracle->norm_epsilon);
  if (c->gate != ORACLE_GATE_NONE) {
    const double *z = oracle_linear(oracle, "g_proj", x);
    for (int64_t i = 0; i < T * HV * V; i++)
      n[i] *= c->gate == ORACLE_GATE_SWISH ? oracle_silu(z[i]) : oracle_sigmoid(z[i]);
  }
  return oracle_linear(oracle, "o_proj", n);
}

const oracle_family oracle_comba = {.mix = mix, .gates = "a_proj"};
