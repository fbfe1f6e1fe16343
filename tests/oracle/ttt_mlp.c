#include "ttt_mlp.h"

#include <string.h>

#include "two_layers.h"

static const double EPSILON = 1e-6;

/* sum += rate d/d memory of 1/2 |LN(f(k)) - (v - k)|^2 */
static void add_gradient(int64_t F, int64_t M, const double *memory, const double *weight, const double *bias,
                         const double *k, const double *v, double rate, double *sum) {
  double z[M], y[F], normal[F], u[F], mean = 0, along = 0;
  oracle_two_layers(F, M, memory, k, z, y);
  const double deviation = oracle_layer_norm(F, weight, bias, y, normal, u);
  for (int64_t i = 0; i < F; i++) {
    u[i] = weight[i] * (u[i] - (v[i] - k[i]));
    mean += u[i] / (double)F;
    along += u[i] * normal[i] / (double)F;
  }
  for (int64_t i = 0; i < F; i++) y[i] = (u[i] - mean - normal[i] * along) / deviation;
  oracle_two_layers_gradient(F, M, memory, k, z, y, rate, sum);
}

/* Neighbouring channels of each head turned by the position in the mini-batch */
static void turn(const oracle_model *oracle, double *x, int64_t F, int64_t period) {
  const oracle_ttt_mlp_config *c = oracle->config;
  for (int64_t i = 0; i < oracle->length * oracle->hidden; i += 2) {
    const double angle = (double)(i / oracle->hidden % period) * pow(c->rope_theta, -(double)(i % F) / (double)F);
    const double before = x[i];
    x[i] = before * cos(angle) - x[i + 1] * sin(angle);
    x[i + 1] = x[i + 1] * cos(angle) + before * sin(angle);
  }
}

/* Copies head h's NAME (H, size) to `to`. */
static void load(oracle_model *oracle, const char *name, int64_t head, int64_t size, double *to) {
  memcpy(to, oracle_weight_of(oracle, name) + head * size, (size_t)size * sizeof *to);
}

/* q + LN(f_t(q)) of every token and head, with the memory that has taken the mini-batch's gradients up to it */
static double *learn(oracle_model *oracle, const double *q, const double *k, const double *v, const double *x) {
  const oracle_ttt_mlp_config *c = oracle->config;
  const int64_t T = oracle->length, d = oracle->hidden, C = oracle_extent(oracle, "learnable_token_idx", 0);
  const int64_t F = d / c->heads, M = oracle_extent(oracle, "W1", 2);
  const int64_t size = 2 * F * M + M + F;
  double *y = oracle_zeros(oracle, T * d), *start = oracle_zeros(oracle, size), *sum = oracle_zeros(oracle, size);
  double *memory = oracle_zeros(oracle, size);
  for (int64_t h = 0; h < c->heads; h++) {
    const double *weight = oracle_weight_of(oracle, "ttt_norm_weight") + h * F;
    const double *bias = oracle_weight_of(oracle, "ttt_norm_bias") + h * F;
    load(oracle, "W1", h, F * M, memory);
    load(oracle, "b1", h, M, memory + F * M);
    load(oracle, "W2", h, M * F, memory + F * M + M);
    load(oracle, "b2", h, F, memory + 2 * F * M + M);
    for (int64_t t = 0; t < T; t++) {
      if (t % C == 0) {
        memcpy(start, memory, (size_t)size * sizeof *start);
        memset(sum, 0, (size_t)size * sizeof *sum);
      }
      double rate = oracle_weight_of(oracle, "learnable_ttt_lr_bias")[h], z[M], o[F], normal[F];
      for (int64_t i = 0; i < d; i++)
        rate += oracle_weight_of(oracle, "learnable_ttt_lr_weight")[h * d + i] * x[t * d + i];
      const int64_t at = t * d + h * F;
      add_gradient(F, M, start, weight, bias, k + at, v + at, c->base_lr / (double)F * oracle_sigmoid(rate), sum);
      const double place = fmax(1 / (double)(t % C + 1) + oracle_weight_of(oracle, "learnable_token_idx")[t % C], 0);
      for (int64_t i = 0; i < size; i++) memory[i] = start[i] - place * sum[i];
      oracle_two_layers(F, M, memory, q + at, z, o);
      oracle_layer_norm(F, weight, bias, o, normal, y + at);
      for (int64_t i = 0; i < F; i++) y[at + i] += q[at + i];
    }
  }
  return y;
}

static double *mix(oracle_model *oracle, const double *x) {
  const oracle_ttt_mlp_config *c = oracle->config;
  const int64_t T = oracle->length, d = oracle->hidden, C = oracle_extent(oracle, "learnable_token_idx", 0);
  const bool shared = !oracle_has(oracle, "k_proj.weight");
  double *q = oracle_linear(oracle, "q_proj", x);
  double *k = shared ? oracle_convolution(oracle, "conv_k", q) : oracle_linear(oracle, "k_proj", x);
  if (shared) q = oracle_convolution(oracle, "conv_q", q);
  turn(oracle, q, d / c->heads, C);
  turn(oracle, k, d / c->heads, C);
  double *y = learn(oracle, q, k, oracle_linear(oracle, "v_proj", x), x);
  y = oracle_norm(oracle, "post_norm", y, T, d, EPSILON);
  if (oracle_has(oracle, "g_proj.weight")) {
    const double *gate = oracle_linear(oracle, "g_proj", x);
    for (int64_t i = 0; i < T * d; i++) y[i] *= oracle_gelu_tanh(gate[i]);
  }
  return oracle_linear(oracle, "o_proj", y);
}

const oracle_family oracle_ttt_mlp = {.mix = mix, .gates = "ttt_lr"};
