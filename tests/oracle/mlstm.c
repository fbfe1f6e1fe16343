#include "mlstm.h"

/* cap(NAME x) (T,H), then its logarithm where the gate is a sigmoid */
static double *log_gate(oracle_model *oracle, const char *name, const double *x, bool sigmoid) {
  const oracle_mlstm_config *c = oracle->config;
  double *y = oracle_linear(oracle, name, x);
  for (int64_t i = 0; i < oracle->length * c->heads; i++) {
    if (c->cap > 0) y[i] = c->cap * tanh(y[i] / c->cap);
    if (sigmoid) y[i] = -oracle_softplus(-y[i]);
  }
  return y;
}

static double dot(const double *a, const double *b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

/* h (V) of token t without a state: token j counts with e^{f_{j+1} + ... + f_t + i_j}, all of them over e^m, m the largest
 * of these exponents and of f_1 + ... + f_t, which is what the start at m = 0 has become. */
static void attend(const oracle_mlstm_config *c, int64_t t, int64_t K, int64_t V, const double *q, const double *k,
                   const double *v, const double *i, const double *f, double *h) {
  double m = -INFINITY, sum = 0, normalizer = 0;
  for (int64_t j = t; j >= 0; j--) {
    m = fmax(m, sum + i[j * c->heads]);
    sum += f[j * c->heads];
  }
  m = fmax(m, sum);
  sum = 0;
  for (int64_t j = t; j >= 0; j--) {
    const double weight = exp(sum + i[j * c->heads] - m) * dot(q, k + j * c->heads * K, K) / sqrt((double)K);
    normalizer += weight;
    for (int64_t a = 0; a < V; a++) h[a] += weight * v[j * c->heads * V + a];
    sum += f[j * c->heads];
  }
  for (int64_t a = 0; a < V; a++) h[a] /= fmax(fabs(normalizer), exp(-m)) + c->epsilon;
}

static double *mlstm(oracle_model *oracle, const double *x) {
  const oracle_mlstm_config *c = oracle->config;
  const int64_t T = oracle->length, H = c->heads;
  const int64_t K = oracle_extent(oracle, "q.weight", 0) / H, V = oracle_extent(oracle, "v.weight", 0) / H;
  const double *q = oracle_linear(oracle, "q", x), *k = oracle_linear(oracle, "k", x),
               *v = oracle_linear(oracle, "v", x);
  const double *z = oracle_linear(oracle, "ogate_preact", x), *w = oracle_weight_of(oracle, "multihead_norm.weight");
  const double *i = log_gate(oracle, "igate_preact", x, false);
  const double *f = log_gate(oracle, "fgate_preact", x, !c->exponential_forget);
  double *y = oracle_zeros(oracle, T * H * V);
  for (int64_t row = 0; row < T * H; row++) {
    const int64_t t = row / H, h = row % H;
    double *out = y + row * V, mean = 0, variance = 0;
    attend(c, t, K, V, q + row * K, k + h * K, v + h * V, i + h, f + h, out);
    for (int64_t a = 0; a < V; a++) mean += out[a] / (double)V;
    for (int64_t a = 0; a < V; a++) variance += (out[a] - mean) * (out[a] - mean) / (double)V;
    for (int64_t a = 0; a < V; a++)
      out[a] = oracle_sigmoid(z[row * V + a]) * w[h * V + a] * (out[a] - mean) / sqrt(variance + oracle->norm_epsilon);
  }
  return oracle_linear(oracle, "out_proj", y);
}

const oracle_family oracle_mlstm = {.mix = mlstm, .gates = "gate_preact"};
