#include "mesa_net.h"

#include <stdio.h>
#include <string.h>

/* silu(conv(NAME_proj x)) (T,H,K), each head divided by its length */
static double *project_unit(oracle_model *oracle, const char *name, const double *x, int64_t H, int64_t K) {
  char part[24];
  snprintf(part, sizeof part, "%s_proj", name);
  double *y = oracle_linear(oracle, part, x);
  snprintf(part, sizeof part, "%s_conv1d", name);
  y = oracle_convolution(oracle, part, y);
  for (int64_t row = 0; row < oracle->length * H; row++) {
    double square = 0;
    for (int64_t i = 0; i < K; i++) {
      y[row * K + i] = oracle_silu(y[row * K + i]);
      square += y[row * K + i] * y[row * K + i];
    }
    for (int64_t i = 0; i < K; i++) y[row * K + i] /= sqrt(square + 1e-6);
  }
  return y;
}

/* x = (H + diag(lambda))^{-1} q by Gaussian elimination, which needs no pivots: the matrix is positive definite. `system` (K,K)
 * is scratch. */
static void solve(int64_t K, const double *H, const double *lambda, const double *q, double *system, double *x) {
  memcpy(system, H, (size_t)(K * K) * sizeof *system);
  memcpy(x, q, (size_t)K * sizeof *x);
  for (int64_t i = 0; i < K; i++) system[i * K + i] += lambda[i];
  for (int64_t i = 0; i < K; i++)
    for (int64_t j = i + 1; j < K; j++) {
      const double factor = system[j * K + i] / system[i * K + i];
      for (int64_t c = i; c < K; c++) system[j * K + c] -= factor * system[i * K + c];
      x[j] -= factor * x[i];
    }
  for (int64_t i = K - 1; i >= 0; i--) {
    for (int64_t c = i + 1; c < K; c++) x[i] -= system[i * K + c] * x[c];
    x[i] /= system[i * K + i];
  }
}

static double *mesa_net(oracle_model *oracle, const double *x) {
  const oracle_mesa_config *c = oracle->config;
  const int64_t T = oracle->length, heads = c->heads, K = oracle_extent(oracle, "q_proj.weight", 0) / heads;
  const double *q = project_unit(oracle, "q", x, heads, K), *k = project_unit(oracle, "k", x, heads, K);
  const double *v = oracle_linear(oracle, "v_proj", x), *a = oracle_linear(oracle, "a_proj", x);
  const double *b = oracle_linear(oracle, "b_proj", x), *parameter = oracle_weight_of(oracle, "lambda_params");
  double *o = oracle_zeros(oracle, T * heads * K), *lambda = oracle_zeros(oracle, K);
  double *system = oracle_zeros(oracle, K * K), *query = oracle_zeros(oracle, K);
  for (int64_t h = 0; h < heads; h++) {
    double *H = oracle_zeros(oracle, K * K), *G = oracle_zeros(oracle, K * K);
    for (int64_t i = 0; i < K; i++) lambda[i] = oracle_softplus(parameter[h * K + i]) + c->lower_bound;
    for (int64_t t = 0; t < T; t++) {
      const int64_t gate = t * heads + h, row = gate * K;
      const double decay = oracle_sigmoid(a[gate]), beta = oracle_sigmoid(b[gate]);
      for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++) {
          H[i * K + j] = decay * H[i * K + j] + beta * k[row + i] * k[row + j];
          G[i * K + j] = decay * G[i * K + j] + beta * k[row + i] * v[row + j];
        }
      solve(K, H, lambda, q + row, system, query);
      for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++) o[row + j] += G[i * K + j] * query[i];
    }
  }
  double *y = oracle_norm(oracle, "o_norm", o, T * heads, K, oracle->norm_epsilon);
  const double *gate = oracle_has(oracle, "g_proj.weight") ? oracle_linear(oracle, "g_proj", x) : NULL;
  for (int64_t i = 0; i < T * heads * K && gate; i++) y[i] *= oracle_silu(gate[i]);
  return oracle_linear(oracle, "o_proj", y);
}

const oracle_family oracle_mesa_net = {.mix = mesa_net, .gates = "a_proj"};
