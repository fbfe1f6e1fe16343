#include "rwkv7.h"

#include <stdio.h>

double oracle_squared_relu(double x) {
  return x > 0 ? x * x : 0;
}

/* x_t + (x_{t-1} - x_t) NAME, x_{-1} = 0 */
static double *mix(oracle_model *oracle, const char *name, const double *x) {
  const int64_t d = oracle->hidden;
  const double *mu = oracle_weight_of(oracle, name);
  double *y = oracle_zeros(oracle, oracle->length * d);
  for (int64_t i = 0; i < oracle->length * d; i++) y[i] = x[i] + ((i >= d ? x[i - d] : 0) - x[i]) * mu[i % d];
  return y;
}

/* NAME_lora.lora.2 f(NAME_lora.lora.0 x) */
static double *low_rank(oracle_model *oracle, char name, const double *x, double (*f)(double)) {
  char down[32], up[32], weight[32];
  snprintf(down, sizeof down, "%c_lora.lora.0", name);
  snprintf(up, sizeof up, "%c_lora.lora.2", name);
  snprintf(weight, sizeof weight, "%c_lora.lora.0.weight", name);
  double *y = oracle_linear(oracle, down, x);
  for (int64_t i = 0; i < oracle->length * oracle_extent(oracle, weight, 0) && f; i++) y[i] = f(y[i]);
  return oracle_linear(oracle, up, y);
}

/* One head: o (V) of every token. r, w, u, a, k (T,H,K) and v, o (T,H,V) at the head's channels. */
typedef struct head {
  int64_t T, K, V, keys, values; /* keys, values: from token to token */
  const double *r, *w, *u, *a, *k, *v;
  double *o;
} head;

static void recur(const head *h, double *S, double *read) {
  for (int64_t t = 0; t < h->T; t++) {
    const double *r = h->r + t * h->keys, *w = h->w + t * h->keys, *u = h->u + t * h->keys, *a = h->a + t * h->keys;
    const double *k = h->k + t * h->keys, *v = h->v + t * h->values;
    for (int64_t j = 0; j < h->V; j++) {
      read[j] = 0;
      for (int64_t i = 0; i < h->K; i++) read[j] += S[i * h->V + j] * u[i];
    }
    for (int64_t i = 0; i < h->K; i++)
      for (int64_t j = 0; j < h->V; j++) {
        double *s = &S[i * h->V + j];
        *s = exp(w[i]) * *s - u[i] * a[i] * read[j] + k[i] * v[j];
        h->o[t * h->values + j] += *s * r[i];
      }
  }
}

/* v, and from the second layer on v + (v_first - v) sigmoid(low rank map of x_v) */
static double *values(oracle_model *oracle, const double *x, int64_t count) {
  const double *mixed = mix(oracle, "x_v", x);
  double *v = oracle_linear(oracle, "v_proj", mixed);
  if (!oracle->carried) return oracle->carried = v;
  const double *share = low_rank(oracle, 'v', mixed, NULL);
  for (int64_t i = 0; i < count; i++) v[i] += (oracle->carried[i] - v[i]) * oracle_sigmoid(share[i]);
  return v;
}

static double *time_mix(oracle_model *oracle, const double *x) {
  const oracle_rwkv7_config *c = oracle->config;
  const int64_t T = oracle->length, d = oracle->hidden, H = oracle_extent(oracle, "r_k", 0), K = d / H;
  const int64_t channels = oracle_extent(oracle, "g_norm.weight", 0), V = channels / H;
  const double *k_k = oracle_weight_of(oracle, "k_k"), *k_a = oracle_weight_of(oracle, "k_a");
  const double *r_k = oracle_weight_of(oracle, "r_k");
  const double *r = oracle_linear(oracle, "r_proj", mix(oracle, "x_r", x));
  double *w = low_rank(oracle, 'w', mix(oracle, "x_w", x), tanh);
  double *k = oracle_linear(oracle, "k_proj", mix(oracle, "x_k", x));
  const double *v = values(oracle, x, T * channels);
  double *a = low_rank(oracle, 'a', mix(oracle, "x_a", x), NULL);
  const double *gate = low_rank(oracle, 'g', mix(oracle, "x_g", x), oracle_sigmoid);

  double *u = oracle_zeros(oracle, T * d), *o = oracle_zeros(oracle, T * channels);
  for (int64_t i = 0; i < T * d; i++) {
    w[i] = -exp(-0.5) * oracle_sigmoid(w[i]);
    a[i] = oracle_sigmoid(a[i]);
    u[i] = k[i] * k_k[i % d];
    k[i] *= 1 + (a[i] - 1) * k_a[i % d];
  }
  for (int64_t row = 0; row < T * H; row++) {
    double square = 0;
    for (int64_t i = 0; i < K; i++) square += u[row * K + i] * u[row * K + i];
    for (int64_t i = 0; i < K; i++) u[row * K + i] /= sqrt(square + c->key_epsilon);
  }
  for (int64_t h = 0; h < H; h++)
    recur(&(head){T, K, V, d, channels, r + h * K, w + h * K, u + h * K, a + h * K, k + h * K, v + h * V, o + h * V},
          oracle_zeros(oracle, K * V), oracle_zeros(oracle, V));

  const double *weight = oracle_weight_of(oracle, "g_norm.weight"), *bias = oracle_weight_of(oracle, "g_norm.bias");
  for (int64_t row = 0; row < T * H; row++) {
    const int64_t h = row % H;
    double mean = 0, variance = 0, bonus = 0;
    for (int64_t j = 0; j < V; j++) mean += o[row * V + j] / (double)V;
    for (int64_t j = 0; j < V; j++) variance += pow(o[row * V + j] - mean, 2) / (double)V;
    for (int64_t i = 0; i < K; i++) bonus += r[row * K + i] * k[row * K + i] * r_k[h * K + i];
    for (int64_t j = 0; j < V; j++) {
      double *y = &o[row * V + j];
      *y = (*y - mean) / sqrt(variance + (double)K * oracle->norm_epsilon) * weight[h * V + j] + bias[h * V + j];
      *y = (*y + bonus * v[row * V + j]) * gate[row * V + j];
    }
  }
  return oracle_linear(oracle, "o_proj", o);
}

static double *channel_mix(oracle_model *oracle, const double *x) {
  const oracle_rwkv7_config *c = oracle->config;
  double *y = oracle_linear(oracle, "key", mix(oracle, "x_k", x));
  for (int64_t i = 0; i < oracle->length * oracle_extent(oracle, "key.weight", 0); i++) y[i] = c->activation(y[i]);
  return oracle_linear(oracle, "value", y);
}

static void block(oracle_model *oracle, double *x) {
  const int64_t T = oracle->length, d = oracle->hidden;
  if (oracle_has(oracle, "pre_norm.weight")) {
    const double *y = oracle_norm(oracle, "pre_norm", x, T, d, oracle->norm_epsilon);
    for (int64_t i = 0; i < T * d; i++) x[i] = y[i];
  }
  oracle_add_branch(oracle, "attn_norm", "attn", x, time_mix);
  oracle_add_branch(oracle, "ffn_norm", "ffn", x, channel_mix);
}

/* Gates saturate by their second maps alone: a and the share of v have nothing between their two maps, so a gain in both would be
 * squared, and a sigmoid of slope 900 turns half a unit in the last place of a weight into 5e-4 of the logits. */
const oracle_family oracle_rwkv7 = {.block = block, .norm_epsilon = 1e-5, .gates = "_lora.lora.2"};
