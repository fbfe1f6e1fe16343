#include "memory_family.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "two_layers.h"

/* One head of a memory (K,V) [and b (V)]: at each token n is the gradient of the loss at what the memory W of the chunk's start
 * returns; then
 *   U = momentum U - rate k n^T;  A = retention A + U;  the token reads map(A), or in TTT W + weight (A - W)
 * and what the last token of a chunk has becomes W. b moves like a row of A whose key is 1. */
typedef struct memory {
  oracle_model *oracle;
  int64_t K, V;
  double *W, *A, *U; /* (K + 1, V), the last row b */
  const double *norm_weight, *norm_bias;
} memory;

static double *heads_of(oracle_model *oracle, const char *name, const double *x, bool unit) {
  const oracle_memory_config *c = oracle->config;
  char linear[32], convolution[32];
  snprintf(linear, sizeof linear, "%s_proj", name);
  snprintf(convolution, sizeof convolution, "%s_conv1d.weight", name);
  double *y = oracle_linear(oracle, linear, x);
  snprintf(linear, sizeof linear, "%s_proj.weight", name);
  const int64_t width = oracle_extent(oracle, linear, 0), size = width / c->heads;
  if (oracle_has(oracle, convolution)) {
    convolution[strlen(convolution) - strlen(".weight")] = 0;
    y = oracle_convolution(oracle, convolution, y);
  }
  for (int64_t i = 0; i < oracle->length * width; i++) y[i] = oracle_silu(y[i]);
  for (int64_t row = 0; unit && row < oracle->length * c->heads; row++) {
    double square = 1e-6;
    for (int64_t i = 0; i < size; i++) square += y[row * size + i] * y[row * size + i];
    for (int64_t i = 0; i < size; i++) y[row * size + i] /= sqrt(square);
  }
  return y;
}

/* ---- Losses: n (V) at z (V) ------------------------------------------------------------------------------------------ */

/* 1/2 |LN(z) - t|^2: the Jacobian of LN, entry by entry */
static void layer_norm_gradient(const memory *m, const double *z, const double *t, double *n) {
  const int64_t V = m->V;
  double mean = 0, square = 0;
  for (int64_t i = 0; i < V; i++) mean += z[i] / (double)V;
  for (int64_t i = 0; i < V; i++) square += (z[i] - mean) * (z[i] - mean) / (double)V;
  const double r = 1 / sqrt(square + 1e-6);
  memset(n, 0, (size_t)V * sizeof *n);
  for (int64_t i = 0; i < V; i++) {
    const double x = (z[i] - mean) * r, error = m->norm_weight[i] * x + m->norm_bias[i] - t[i];
    for (int64_t j = 0; j < V; j++)
      n[j] += error * m->norm_weight[i] * r * ((i == j) - (1 + x * (z[j] - mean) * r) / (double)V);
  }
}

static void huber_gradient(const oracle_memory_config *c, int64_t V, double delta, double *e) {
  double length = 0;
  for (int64_t i = 0; i < V; i++) length += e[i] * e[i];
  length = sqrt(length);
  for (int64_t i = 0; i < V; i++) {
    const double sign = e[i] > 0 ? 1 : -1;
    if (c->huber == ORACLE_HUBER_CHANNEL)
      e[i] = fabs(e[i]) > delta ? delta * sign : e[i];
    else if (length > delta)
      e[i] = c->huber == ORACLE_HUBER_SIGN ? delta * sign : delta * e[i] / length;
  }
}

static void power_gradient(const oracle_memory_config *c, int64_t V, double *e) {
  for (int64_t i = 0; i < V; i++)
    e[i] = c->p * tanh(c->sharpness * e[i]) * pow(sqrt(e[i] * e[i] + c->smoothing), c->p - 1);
}

/* ---- Maps: memory (K,V) of A ----------------------------------------------------------------------------------------- */

static void power_map(const oracle_memory_config *c, int64_t size, double *A) {
  double sum = 0;
  for (int64_t i = 0; i < size; i++) sum += pow(fabs(A[i]), c->q);
  const double norm = pow(sum, 1 / c->q);
  for (int64_t i = 0; i < size; i++) {
    const double sign = A[i] > 0 ? 1 : -1, mirrored = sign * pow(fabs(A[i]), c->q - 1);
    A[i] = (c->mirror ? mirrored : A[i]) / pow(norm, c->q - 2);
  }
}

static void softmax_map(const oracle_memory_config *c, int64_t K, int64_t V, double *A) {
  double *sum = calloc((size_t)(K * V), sizeof *sum);
  for (int pass = 0; pass < 2; pass++)
    for (int64_t k = 0; k < K; k++)
      for (int64_t v = 0; v < V; v++) {
        double *own = &sum[c->softmax == ORACLE_SOFTMAX_MEMORY ? 0 : c->softmax == ORACLE_SOFTMAX_COLUMN ? v : k];
        if (pass)
          A[k * V + v] = c->total * A[k * V + v] / *own;
        else
          *own += A[k * V + v] = exp(A[k * V + v]);
      }
  free(sum);
}

/* ---- The recurrence -------------------------------------------------------------------------------------------------- */

typedef enum kind { TTT_LINEAR, TITANS, YAAD, MONETA, MEMORA } kind;

/* Operands (T,heads,...), per head and token; those that a mixer lacks are NULL. */
typedef struct operands {
  kind kind;
  int64_t K, V;
  const double *q, *k, *v, *rate, *retention, *momentum, *delta, *token_idx, *W, *b, *norm_weight, *norm_bias;
} operands;

static void map(const operands *a, const oracle_memory_config *c, const double *A, double *mapped) {
  memcpy(mapped, A, (size_t)((a->K + 1) * a->V) * sizeof *A);
  if (a->kind == MONETA) power_map(c, a->K * a->V, mapped);
  if (a->kind == MEMORA) softmax_map(c, a->K, a->V, mapped);
}

/* z (V) = memory^T x + b */
static void read(const memory *m, const double *matrix, const double *x, double *z) {
  for (int64_t v = 0; v < m->V; v++) {
    z[v] = matrix[m->K * m->V + v];
    for (int64_t i = 0; i < m->K; i++) z[v] += x[i] * matrix[i * m->V + v];
  }
}

/* n (V) of token `row`, at the memory `start` of its chunk */
static void gradient(const memory *m, const operands *a, int64_t row, const double *start, double *n) {
  const oracle_memory_config *c = m->oracle->config;
  const double *k = a->k + row * m->K, *v = a->v + row * m->V;
  double z[64], t[64];
  read(m, start, k, z);
  for (int64_t i = 0; i < m->V; i++) t[i] = a->kind == TTT_LINEAR ? v[i] - k[i] : v[i];
  for (int64_t i = 0; i < m->V; i++) n[i] = z[i] - t[i];
  switch (a->kind) {
  case TTT_LINEAR: layer_norm_gradient(m, z, t, n); break;
  case TITANS:
    for (int64_t i = 0; i < m->V; i++) n[i] *= 2;
    break;
  case YAAD: huber_gradient(c, m->V, a->delta[row], n); break;
  case MONETA: power_gradient(c, m->V, n); break;
  case MEMORA: break;
  }
}

static double *recur(oracle_model *oracle, const operands *a) {
  const oracle_memory_config *c = oracle->config;
  const int64_t T = oracle->length, H = c->heads, K = a->K, V = a->V, size = (K + 1) * V;
  double *o = oracle_zeros(oracle, T * H * V);
  for (int64_t h = 0; h < H; h++) {
    memory m = {oracle,
                K,
                V,
                oracle_zeros(oracle, size),
                oracle_zeros(oracle, size),
                oracle_zeros(oracle, size),
                a->norm_weight ? a->norm_weight + h * V : NULL,
                a->norm_bias ? a->norm_bias + h * V : NULL};
    double *start = oracle_zeros(oracle, size), *seen = oracle_zeros(oracle, size), n[64];
    if (a->W) memcpy(m.W, a->W + h * K * V, (size_t)(K * V) * sizeof *m.W);
    if (a->b) memcpy(m.W + K * V, a->b + h * V, (size_t)V * sizeof *m.W);
    for (int64_t t = 0; t < T; t++) {
      const int64_t row = t * H + h, place = t % c->chunk;
      if (place == 0) {
        memcpy(m.A, m.W, (size_t)size * sizeof *m.W);
        map(a, c, m.W, start);
      }
      gradient(&m, a, row, start, n);
      for (int64_t i = 0; i <= K; i++)
        for (int64_t v = 0; v < V; v++) {
          const double key = i < K ? a->k[row * K + i] : a->b ? 1 : 0;
          double *U = &m.U[i * V + v], *A = &m.A[i * V + v];
          *U = (a->momentum ? a->momentum[row] : 0) * *U - a->rate[row] * key * n[v];
          *A = (a->retention ? a->retention[row] : 1) * *A + *U;
        }
      map(a, c, m.A, seen);
      if (a->token_idx) {
        const double weight = fmax(1 / (double)(place + 1) + a->token_idx[place], 0);
        for (int64_t i = 0; i < size; i++) seen[i] = m.W[i] + weight * (m.A[i] - m.W[i]);
      }
      read(&m, seen, a->q + row * K, o + row * V);
      if (place + 1 == c->chunk) memcpy(m.W, a->token_idx ? seen : m.A, (size_t)size * sizeof *m.W);
    }
  }
  return o;
}

/* ---- Two layers ------------------------------------------------------------------------------------------------------ */

/* Each matrix mapped by itself; the total of a softmax is by its shape. */
static void map_matrix(const operands *a, const oracle_memory_config *c, int64_t rows, int64_t columns, double *A) {
  oracle_memory_config own = *c;
  const double root = sqrt((double)rows), width = (double)columns;
  if (own.total == 0)
    own.total = c->softmax == ORACLE_SOFTMAX_MEMORY   ? width * root
                : c->softmax == ORACLE_SOFTMAX_COLUMN ? root
                                                      : width / root;
  if (a->kind == MONETA) power_map(c, rows * columns, A);
  if (a->kind == MEMORA) softmax_map(&own, rows, columns, A);
}

/* M(x) = x + LN(f(x)): a token sees f with keep map(A) - G, A that of the chunk's start, keep what retention has left of it, G the
 * gradients so far. At the chunk's end A = keep A - G. */
static double *recur_layers(oracle_model *oracle, const operands *a) {
  const oracle_memory_config *c = oracle->config;
  const int64_t T = oracle->length, H = c->heads, F = a->K, M = oracle_extent(oracle, "memory_w1", 2);
  const int64_t size = 2 * F * M + M + F, second = F * M + M;
  double *o = oracle_zeros(oracle, T * H * F), *A = oracle_zeros(oracle, size), *start = oracle_zeros(oracle, size);
  double *G = oracle_zeros(oracle, size), *seen = oracle_zeros(oracle, size), keep = 1, z[M], y[F], normal[F], e[F];
  for (int64_t h = 0; h < H; h++) {
    const double *weight = oracle_weight_of(oracle, "memory_norm_weight") + h * F;
    const double *bias = oracle_weight_of(oracle, "memory_norm_bias") + h * F;
    memcpy(A, oracle_weight_of(oracle, "memory_w1") + h * F * M, (size_t)(F * M) * sizeof *A);
    memcpy(A + F * M, oracle_weight_of(oracle, "memory_b1") + h * M, (size_t)M * sizeof *A);
    memcpy(A + second, oracle_weight_of(oracle, "memory_w2") + h * M * F, (size_t)(M * F) * sizeof *A);
    memcpy(A + second + M * F, oracle_weight_of(oracle, "memory_b2") + h * F, (size_t)F * sizeof *A);
    for (int64_t t = 0; t < T; t++) {
      const int64_t row = t * H + h, place = t % c->chunk;
      const double *k = a->k + row * F, *v = a->v + row * F, *q = a->q + row * F;
      if (place == 0) {
        memcpy(start, A, (size_t)size * sizeof *A);
        map_matrix(a, c, F, M, start);
        map_matrix(a, c, M, F, start + second);
        memset(G, 0, (size_t)size * sizeof *G);
        keep = 1;
      }
      oracle_two_layers(F, M, start, k, z, y);
      const double deviation = oracle_layer_norm(F, weight, bias, y, normal, e);
      for (int64_t i = 0; i < F; i++) e[i] = (c->raw_loss ? y[i] : e[i]) - (v[i] - k[i]);
      if (a->kind == YAAD) huber_gradient(c, F, a->delta[row], e);
      if (a->kind == MONETA) power_gradient(c, F, e);
      double mean = 0, along = 0;
      for (int64_t i = 0; i < F && !c->raw_loss; i++) {
        e[i] *= weight[i];
        mean += e[i] / (double)F;
        along += e[i] * normal[i] / (double)F;
      }
      for (int64_t i = 0; i < F && !c->raw_loss; i++) e[i] = (e[i] - mean - normal[i] * along) / deviation;
      for (int64_t i = 0; i < size; i++) G[i] *= a->retention[row];
      keep *= a->retention[row];
      oracle_two_layers_gradient(F, M, start, k, z, e, a->rate[row], G);
      for (int64_t i = 0; i < size; i++) seen[i] = keep * start[i] - G[i];
      oracle_two_layers(F, M, seen, q, z, y);
      oracle_layer_norm(F, weight, bias, y, normal, o + row * F);
      for (int64_t i = 0; i < F; i++) o[row * F + i] += q[i];
      for (int64_t i = 0; i < size && place + 1 == c->chunk; i++) A[i] = keep * A[i] - G[i];
    }
  }
  return o;
}

/* ---- TTT-Linear ------------------------------------------------------------------------------------------------------ */

/* Neighbouring channels of each head turned by (t mod chunk) 10000^(-2j/K) */
static void rotate(double *x, int64_t T, int64_t heads, int64_t K, int64_t chunk) {
  for (int64_t row = 0; row < T * heads; row++)
    for (int64_t j = 0; j < K / 2; j++) {
      const double angle = (double)(row / heads % chunk) * pow(10000, -2 * (double)j / (double)K);
      double *a = &x[row * K + 2 * j], *b = a + 1, before = *a;
      *a = before * cos(angle) - *b * sin(angle);
      *b = *b * cos(angle) + before * sin(angle);
    }
}

static double gelu_tanh(double x) {
  return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double *ttt_linear(oracle_model *oracle, const double *x) {
  const oracle_memory_config *c = oracle->config;
  const int64_t T = oracle->length, d = oracle->hidden, H = c->heads, F = d / H;
  double *q = oracle_linear(oracle, "q_proj", x), *k;
  if (oracle_has(oracle, "conv_q.weight")) {
    k = oracle_convolution(oracle, "conv_k", q);
    q = oracle_convolution(oracle, "conv_q", q);
  } else {
    k = oracle_linear(oracle, "k_proj", x);
  }
  rotate(q, T, H, F, c->chunk);
  rotate(k, T, H, F, c->chunk);
  double *rate = oracle_zeros(oracle, T * H);
  const double *theta = oracle_weight_of(oracle, "learnable_ttt_lr_weight");
  for (int64_t i = 0; i < T * H; i++) {
    double sum = oracle_weight_of(oracle, "learnable_ttt_lr_bias")[i % H];
    for (int64_t j = 0; j < d; j++) sum += theta[i % H * d + j] * x[i / H * d + j];
    rate[i] = oracle_sigmoid(sum) * c->base_lr / (double)F;
  }
  const operands a = {.kind = TTT_LINEAR,
                      .K = F,
                      .V = F,
                      .q = q,
                      .k = k,
                      .v = oracle_linear(oracle, "v_proj", x),
                      .rate = rate,
                      .token_idx = oracle_weight_of(oracle, "learnable_token_idx"),
                      .W = oracle_weight_of(oracle, "W1"),
                      .b = oracle_weight_of(oracle, "b1"),
                      .norm_weight = oracle_weight_of(oracle, "ttt_norm_weight"),
                      .norm_bias = oracle_weight_of(oracle, "ttt_norm_bias")};
  double *o = recur(oracle, &a);
  for (int64_t row = 0; row < T * H; row++) {
    double *own = o + row * F, mean = 0, square = 0;
    for (int64_t i = 0; i < F; i++) mean += own[i] / (double)F;
    for (int64_t i = 0; i < F; i++) square += (own[i] - mean) * (own[i] - mean) / (double)F;
    for (int64_t i = 0; i < F; i++)
      own[i] = q[row * F + i] + (own[i] - mean) / sqrt(square + 1e-6) * a.norm_weight[row % H * F + i] +
               a.norm_bias[row % H * F + i];
  }
  o = oracle_norm(oracle, "post_norm", o, T, d, 1e-6);
  const double *gate = oracle_has(oracle, "g_proj.weight") ? oracle_linear(oracle, "g_proj", x) : NULL;
  for (int64_t i = 0; gate && i < T * d; i++) o[i] *= gelu_tanh(gate[i]);
  return oracle_linear(oracle, "o_proj", o);
}

/* ---- Titans, MIRAS --------------------------------------------------------------------------------------------------- */

/* (T,H) = f(NAME_proj x + bias) scale; the bias is that of the projection or NAME_bias */
static double *gate_of(oracle_model *oracle, const char *name, const double *x, double (*f)(double), double scale) {
  const oracle_memory_config *c = oracle->config;
  char part[32];
  snprintf(part, sizeof part, "%s_proj", name);
  double *y = oracle_linear(oracle, part, x);
  snprintf(part, sizeof part, "%s_bias", name);
  const double *bias = oracle_has(oracle, part) ? oracle_weight_of(oracle, part) : NULL;
  for (int64_t i = 0; i < oracle->length * c->heads; i++) y[i] = scale * f(y[i] + (bias ? bias[i % c->heads] : 0));
  return y;
}

static double elu_plus_one(double x) {
  return x > 0 ? x + 1 : exp(x);
}

static double *mix(oracle_model *oracle, const double *x, kind kind) {
  const oracle_memory_config *c = oracle->config;
  const int64_t H = c->heads;
  operands a = {.kind = kind,
                .K = oracle_extent(oracle, "q_proj.weight", 0) / H,
                .V = oracle_extent(oracle, "v_proj.weight", 0) / H,
                .q = heads_of(oracle, "q", x, true),
                .k = heads_of(oracle, "k", x, true),
                .v = heads_of(oracle, "v", x, false),
                .rate = gate_of(oracle, "rate", x, oracle_sigmoid, c->base_lr),
                .retention = gate_of(oracle, "retention", x, oracle_sigmoid, 1),
                .W = oracle_has(oracle, "memory") ? oracle_weight_of(oracle, "memory") : NULL};
  if (oracle_has(oracle, "momentum_proj.weight")) a.momentum = gate_of(oracle, "momentum", x, oracle_sigmoid, 1);
  if (kind == YAAD)
    a.delta = gate_of(oracle, "delta", x, c->delta_sigmoid ? oracle_sigmoid : elu_plus_one,
                      c->delta_scale * (c->huber == ORACLE_HUBER_CHANNEL ? 1 : sqrt((double)a.V)));
  const int64_t rows = oracle->length * H;
  double *o = oracle_has(oracle, "memory_w1") ? recur_layers(oracle, &a) : recur(oracle, &a);
  double *y = oracle_norm(oracle, "o_norm", o, rows, a.V, oracle->norm_epsilon);
  const double *gate = oracle_has(oracle, "g_proj.weight") ? oracle_linear(oracle, "g_proj", x) : NULL;
  for (int64_t i = 0; gate && i < rows * a.V; i++) y[i] *= oracle_silu(gate[i]);
  return oracle_linear(oracle, "o_proj", y);
}

static double *titans(oracle_model *oracle, const double *x) {
  return mix(oracle, x, TITANS);
}
static double *yaad(oracle_model *oracle, const double *x) {
  return mix(oracle, x, YAAD);
}
static double *moneta(oracle_model *oracle, const double *x) {
  return mix(oracle, x, MONETA);
}
static double *memora(oracle_model *oracle, const double *x) {
  return mix(oracle, x, MEMORA);
}

const oracle_family oracle_ttt_linear = {.mix = ttt_linear, .gates = "learnable_ttt_lr"};
const oracle_family oracle_titans = {.mix = titans, .gates = "retention_proj"};
const oracle_family oracle_yaad = {.mix = yaad, .gates = "retention_proj"};
/* Its layers have no test of saturated gates: where a memory forgets all but one token, A / |A|^2 grows beyond all bounds. */
const oracle_family oracle_moneta_layers = {.mix = moneta};
const oracle_family oracle_moneta = {.mix = moneta, .gates = "retention_proj"};
const oracle_family oracle_memora = {.mix = memora, .gates = "retention_proj"};
