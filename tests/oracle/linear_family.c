#include "linear_family.h"

#include <stdio.h>

/* Operands of all heads; head h of q reads head h / (heads / kv_heads) of k and v. */
typedef struct operands {
  int64_t K, V;
  double *q, *k, *v; /* (T,heads,K), (T,kv_heads,K), (T,kv_heads,V) */
} operands;

/* NAME_proj, with its convolution where the model has one, and then silu if asked */
static double *project(oracle_model *oracle, const char *name, const double *x, bool silu) {
  char linear[16], convolution[16];
  snprintf(linear, sizeof linear, "%s_proj", name);
  snprintf(convolution, sizeof convolution, "%s_conv1d", name);
  double *y = oracle_linear(oracle, linear, x);
  snprintf(linear, sizeof linear, "%s_conv1d.weight", name);
  if (!oracle_has(oracle, linear)) return y;
  const int64_t count = oracle->length * oracle_extent(oracle, linear, 0);
  y = oracle_convolution(oracle, convolution, y);
  for (int64_t i = 0; i < count && silu; i++) y[i] = oracle_silu(y[i]);
  return y;
}

static void apply(double (*map)(double), double *x, int64_t count) {
  for (int64_t i = 0; i < count && map; i++) x[i] = map(x[i]);
}

/* q, k, v after their feature map */
static operands project_heads(oracle_model *oracle, const double *x) {
  const oracle_linear_config *c = oracle->config;
  operands a = {oracle_extent(oracle, "q_proj.weight", 0) / c->heads,
                oracle_extent(oracle, "o_proj.weight", 1) / c->heads, project(oracle, "q", x, true),
                project(oracle, "k", x, true), project(oracle, "v", x, true)};
  apply(c->map, a.q, oracle->length * c->heads * a.K);
  apply(c->map, a.k, oracle->length * c->kv_heads * a.K);
  return a;
}

/* o (T,heads,V) = K^(-1/2) S_t^T q_t; log decays g (T,heads,K) */
static double *recur(oracle_model *oracle, const operands *a, const double *g) {
  const oracle_linear_config *c = oracle->config;
  const int64_t T = oracle->length, H = c->heads, G = c->kv_heads, K = a->K, V = a->V;
  double *o = oracle_zeros(oracle, T * H * V);
  for (int64_t h = 0; h < H; h++) {
    double *S = oracle_zeros(oracle, K * V);
    for (int64_t t = 0; t < T; t++) {
      const int64_t own = t * H + h, shared = t * G + h / (H / G);
      for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < V; j++) {
          S[i * V + j] = exp(g[own * K + i]) * S[i * V + j] + a->k[shared * K + i] * a->v[shared * V + j];
          o[own * V + j] += S[i * V + j] * a->q[own * K + i] / sqrt((double)K);
        }
    }
  }
  return o;
}

/* W_o (RMSNorm(o) silu(W_g x)), norm and gate by head */
static double *gated_output(oracle_model *oracle, const operands *a, const double *o, const double *x) {
  const oracle_linear_config *c = oracle->config;
  const bool gated = oracle_has(oracle, "g_proj.weight");
  const int64_t rows = oracle->length * c->heads;
  const bool fused = oracle_has(oracle, "g_norm_swish_gate.weight");
  double *y = oracle_norm(oracle, fused ? "g_norm_swish_gate" : "g_norm", o, rows, a->V, oracle->norm_epsilon);
  const double *gate = gated ? oracle_linear(oracle, "g_proj", x) : NULL;
  for (int64_t i = 0; i < rows * a->V && gated; i++) y[i] *= oracle_silu(gate[i]);
  return oracle_linear(oracle, "o_proj", y);
}

/* g = max(clamp_min, ln sigmoid(W_2 W_1 x + c) / 16), by key/value head */
static double *gla(oracle_model *oracle, const double *x) {
  const oracle_linear_config *c = oracle->config;
  const operands a = project_heads(oracle, x);
  const int64_t H = c->heads, G = c->kv_heads, K = a.K;
  const double *z = oracle_linear(oracle, "gk_proj.1", oracle_linear(oracle, "gk_proj.0", x));
  double *g = oracle_zeros(oracle, oracle->length * H * K);
  for (int64_t i = 0; i < oracle->length * H * K; i++) {
    const int64_t t = i / K / H, h = i / K % H;
    g[i] = -oracle_softplus(-z[(t * G + h / (H / G)) * K + i % K]) / 16;
    if (c->clamp_min < 0) g[i] = fmax(g[i], c->clamp_min);
  }
  return gated_output(oracle, &a, recur(oracle, &a, g), x);
}

/* g = ln sigmoid(W x + c) / 16, by query head */
static double *simple_gla(oracle_model *oracle, const double *x) {
  const oracle_linear_config *c = oracle->config;
  const operands a = project_heads(oracle, x);
  const double *z = oracle_linear(oracle, "gk_proj", x);
  double *g = oracle_zeros(oracle, oracle->length * c->heads * a.K);
  for (int64_t i = 0; i < oracle->length * c->heads * a.K; i++) g[i] = -oracle_softplus(-z[i / a.K]) / 16;
  return gated_output(oracle, &a, recur(oracle, &a, g), x);
}

/* Channel i of this layer's lower bound: the sum over layers 1 to this one of softmax over layers. */
static double lower_bound(oracle_model *oracle, int64_t i) {
  const double *bounds = oracle_model_weight(oracle, "model.lower_bounds");
  double all = 0, sum = 0;
  for (int64_t layer = 0; layer < oracle->layers; layer++) {
    const double power = exp(bounds[layer * oracle->hidden + i]);
    all += power;
    if (layer > 0 && layer <= oracle->layer) sum += power;
  }
  return sum / all;
}

/* q = silu(W_q x); f = l + (1 - l) sigmoid(W_f x); S_t = diag(f) S_{t-1} + (1 - f) v^T; one norm over all heads, epsilon 1e-5 */
static double *hgrn2(oracle_model *oracle, const double *x) {
  const oracle_linear_config *c = oracle->config;
  const int64_t T = oracle->length, d = oracle->hidden, keys = oracle_extent(oracle, "q_proj.weight", 0);
  operands a = {keys / c->heads, d / c->heads, project(oracle, "q", x, false), project(oracle, "f", x, false),
                project(oracle, "i", x, false)};
  double *g = oracle_zeros(oracle, T * keys);
  apply(oracle_silu, a.q, T * keys);
  for (int64_t i = 0; i < T * keys; i++) {
    const double l = c->lower_bounds ? lower_bound(oracle, i % keys) : 0, f = l + (1 - l) * oracle_sigmoid(a.k[i]);
    g[i] = log(f);
    a.k[i] = 1 - f;
  }
  return oracle_linear(oracle, "o_proj", oracle_norm(oracle, "g_norm", recur(oracle, &a, g), T, d, 1e-5));
}

/* Decay 1 - 2^(-5-h) of head h, rotary positions */
static double *retnet(oracle_model *oracle, const double *x) {
  const oracle_linear_config *c = oracle->config;
  const operands a = project_heads(oracle, x);
  const int64_t T = oracle->length;
  double *g = oracle_zeros(oracle, T * c->heads * a.K);
  for (int64_t i = 0; i < T * c->heads * a.K; i++) g[i] = log1p(-pow(2, -5 - (double)(i / a.K % c->heads)));
  oracle_rotate(oracle, a.q, c->heads, a.K);
  oracle_rotate(oracle, a.k, c->kv_heads, a.K);
  return gated_output(oracle, &a, recur(oracle, &a, g), x);
}

/* NAME.LAYER of `rows` rows: oracle_linear takes as many as there are tokens */
static double *map_rows(oracle_model *oracle, const char *name, const char *layer, const double *x, int64_t rows) {
  char full[64];
  const int64_t T = oracle->length;
  snprintf(full, sizeof full, "%s.%s", name, layer);
  oracle->length = rows;
  double *y = oracle_linear(oracle, full, x);
  oracle->length = T;
  return y;
}

/* softmax(2 x, -2 x) of each row of K */
static double *hedgehog(oracle_model *oracle, const double *x, int64_t rows, int64_t K) {
  double *y = oracle_zeros(oracle, rows * 2 * K);
  for (int64_t r = 0; r < rows; r++) {
    double sum = 0;
    for (int64_t i = 0; i < K; i++) sum += exp(2 * x[r * K + i]) + exp(-2 * x[r * K + i]);
    for (int64_t i = 0; i < 2 * K; i++) y[r * 2 * K + i] = exp((i < K ? 2 : -2) * x[r * K + i % K]) / sum;
  }
  return y;
}

/* r_i r_{i-j} for j = 1 to 4, r = (relu(x), -relu(x)) or (relu(x), relu(-x)) of 2K entries, taken round */
static double *dpfp(oracle_model *oracle, const double *x, int64_t rows, int64_t K, bool paper) {
  double *y = oracle_zeros(oracle, rows * 8 * K), *r = oracle_zeros(oracle, 2 * K);
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t i = 0; i < K; i++) {
      r[i] = fmax(0, x[row * K + i]);
      r[K + i] = paper ? fmax(0, -x[row * K + i]) : -r[i];
    }
    for (int64_t i = 0; i < 8 * K; i++)
      y[row * 8 * K + i] = r[i % (2 * K)] * r[(i % (2 * K) + 2 * K - i / (2 * K) - 1) % (2 * K)];
  }
  return y;
}

/* f(x) by rows of K channels; *size becomes the number of its features */
static double *features(oracle_model *oracle, const char *name, double *x, int64_t rows, int64_t K, int64_t *size) {
  const oracle_linear_config *c = oracle->config;
  const bool paper = c->features == ORACLE_DPFP_PAPER;
  *size = paper || c->features == ORACLE_DPFP ? 8 * K : (c->features == ORACLE_HEDGEHOG ? 2 * K : K);
  switch (c->features) {
  case ORACLE_ELEMENTWISE_PRODUCT: {
    double *y = map_rows(oracle, name, "layer1", x, rows);
    const double *second = map_rows(oracle, name, "layer2", x, rows);
    for (int64_t i = 0; i < rows * K; i++) y[i] *= second[i];
    return y;
  }
  case ORACLE_HEDGEHOG: return hedgehog(oracle, map_rows(oracle, name, "layer", x, rows), rows, K);
  case ORACLE_T2R:
    x = map_rows(oracle, name, "layer", x, rows);
    for (int64_t i = 0; i < rows * K; i++) x[i] = fmax(0, x[i]);
    return x;
  case ORACLE_DPFP:
  case ORACLE_DPFP_PAPER: return dpfp(oracle, x, rows, K, paper);
  default: return x;
  }
}

static void divide_by_sum(double *x, int64_t rows, int64_t size) {
  for (int64_t r = 0; r < rows; r++) {
    double sum = 1e-4;
    for (int64_t i = 0; i < size; i++) sum += x[r * size + i];
    for (int64_t i = 0; i < size; i++) x[r * size + i] /= sum;
  }
}

/* o_t / (F^(-1/2) z_t^T q_t + 1e-10), z_t the sum of the keys up to t */
static void divide_by_keys(oracle_model *oracle, const operands *a, double *o) {
  const oracle_linear_config *c = oracle->config;
  const int64_t H = c->heads, G = c->kv_heads, F = a->K;
  for (int64_t h = 0; h < H; h++) {
    double *z = oracle_zeros(oracle, F);
    for (int64_t t = 0; t < oracle->length; t++) {
      double sum = 0;
      for (int64_t i = 0; i < F; i++) {
        z[i] += a->k[(t * G + h / (H / G)) * F + i];
        sum += z[i] * a->q[(t * H + h) * F + i] / sqrt((double)F);
      }
      for (int64_t j = 0; j < a->V; j++) o[(t * H + h) * a->V + j] /= sum + 1e-10;
    }
  }
}

static double *linear_attn(oracle_model *oracle, const double *x) {
  const oracle_linear_config *c = oracle->config;
  operands a = project_heads(oracle, x);
  const int64_t T = oracle->length, queries = T * c->heads, keys = T * c->kv_heads;
  int64_t F;
  a.q = features(oracle, "feature_map_q", a.q, queries, a.K, &F);
  a.k = features(oracle, c->tied ? "feature_map_q" : "feature_map_k", a.k, keys, a.K, &F);
  a.K = F;
  if (c->norm_q) divide_by_sum(a.q, queries, F);
  if (c->norm_k) divide_by_sum(a.k, keys, F);
  double *o = recur(oracle, &a, oracle_zeros(oracle, queries * F));
  if (c->normalized) divide_by_keys(oracle, &a, o);
  return oracle_linear(oracle, "o_proj", oracle_norm(oracle, "norm", o, queries, a.V, oracle->norm_epsilon));
}

const oracle_family oracle_gla = {.mix = gla, .gates = "gk_proj"};
const oracle_family oracle_simple_gla = {.mix = simple_gla, .gates = "gk_proj"};
const oracle_family oracle_hgrn2 = {.mix = hgrn2, .gates = "f_proj"};
const oracle_family oracle_retnet = {.mix = retnet};
const oracle_family oracle_linear_attn = {.mix = linear_attn};
