#include "mamba2.h"

/* y (T,heads,P) of the state space model, from rows [x, B, C] after the convolution and rows of W_in x that end with dt */
static double *recur(oracle_model *oracle, const double *rows, int64_t width, const double *projected, int64_t all) {
  const oracle_mamba2_config *c = oracle->config;
  const int64_t T = oracle->length, P = c->head_dim, N = c->state_size, G = c->groups;
  const int64_t inner = width - 2 * G * N, H = inner / P;
  const double *rate = oracle_weight_of(oracle, "A_log"), *bias = oracle_weight_of(oracle, "dt_bias");
  const double *D = oracle_weight_of(oracle, "D");
  const bool by_channel = oracle_extent(oracle, "D", 0) == inner && P > 1;
  double *y = oracle_zeros(oracle, T * inner);
  for (int64_t h = 0; h < H; h++) {
    double *S = oracle_zeros(oracle, N * P);
    for (int64_t t = 0; t < T; t++) {
      const double *x = rows + t * width + h * P, *B = rows + t * width + inner + h / (H / G) * N, *C = B + G * N;
      double dt = fmax(c->least, oracle_softplus(projected[(t + 1) * all - H + h] + bias[h]));
      if (c->largest > 0) dt = fmin(dt, c->largest);
      for (int64_t p = 0; p < P; p++) {
        double *out = &y[t * inner + h * P + p];
        *out = D[by_channel ? h * P + p : h] * x[p];
        for (int64_t n = 0; n < N; n++) {
          S[n * P + p] = exp(-exp(rate[h]) * dt) * S[n * P + p] + dt * B[n] * x[p];
          *out += C[n] * S[n * P + p];
        }
      }
    }
  }
  return y;
}

/* RMSNorm of each group of channels */
static void norm_groups(oracle_model *oracle, double *y, int64_t inner) {
  const oracle_mamba2_config *c = oracle->config;
  const double *weight = oracle_weight_of(oracle, "norm.weight");
  const int64_t size = inner / c->groups;
  for (int64_t group = 0; group < oracle->length * c->groups; group++) {
    double square = 0, *row = y + group * size;
    for (int64_t i = 0; i < size; i++) square += row[i] * row[i];
    for (int64_t i = 0; i < size; i++)
      row[i] *= weight[group % c->groups * size + i] / sqrt(square / (double)size + oracle->norm_epsilon);
  }
}

static void gate(double *y, const double *projected, int64_t inner, int64_t all, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] *= oracle_silu(projected[i / inner * all + i % inner]);
}

static double *mix(oracle_model *oracle, const double *x) {
  const oracle_mamba2_config *c = oracle->config;
  const int64_t T = oracle->length, inner = oracle_extent(oracle, "out_proj.weight", 1);
  const int64_t all = oracle_extent(oracle, "in_proj.weight", 0), width = inner + 2 * c->groups * c->state_size;
  const double *projected = oracle_linear(oracle, "in_proj", x);
  double *rows = oracle_zeros(oracle, T * width);
  for (int64_t i = 0; i < T * width; i++) rows[i] = projected[i / width * all + inner + i % width];
  rows = oracle_convolution(oracle, "conv1d", rows);
  for (int64_t i = 0; i < T * width; i++) rows[i] = oracle_silu(rows[i]);
  double *y = recur(oracle, rows, width, projected, all);
  if (!c->norm_before_gate) gate(y, projected, inner, all, T * inner);
  if (!c->no_norm) norm_groups(oracle, y, inner);
  if (c->norm_before_gate) gate(y, projected, inner, all, T * inner);
  return oracle_linear(oracle, "out_proj", y);
}

static void block(oracle_model *oracle, double *x) {
  oracle_add_branch(oracle, "norm", "mixer", x, mix);
}

const oracle_family oracle_mamba2 = {
    .mix = mix, .block = block, .root = "backbone", .final_norm = "norm_f", .norm_epsilon = 1e-5, .gates = "dt_bias"};
