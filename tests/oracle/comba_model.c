#include "comba_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recurrence.h"

static const double L2_EPSILON = 1e-6;

typedef struct weight {
  char name[128];
  double *data;
} weight;

struct oracle_model {
  oracle_config config;
  weight *weights;
  size_t count;
};

static void *allocate(int64_t count, size_t size) {
  void *memory = calloc((size_t)(count > 0 ? count : 1), size);
  if (!memory) abort();
  return memory;
}

static double *zeros(int64_t count) {
  return allocate(count, sizeof(double));
}

oracle_model *oracle_model_create(const oracle_config *config, const comba_model *model) {
  oracle_model *oracle = allocate(1, sizeof *oracle);
  oracle->config = *config;
  oracle->count = comba_model_parameters(model);
  oracle->weights = allocate((int64_t)oracle->count, sizeof *oracle->weights);
  for (size_t i = 0; i < oracle->count; i++) {
    comba_parameter parameter;
    if (comba_model_parameter(model, i, &parameter) != COMBA_OK) abort();
    snprintf(oracle->weights[i].name, sizeof oracle->weights[i].name, "%s", parameter.name);
    oracle->weights[i].data = zeros(parameter.elements);
    for (int64_t j = 0; j < parameter.elements; j++) oracle->weights[i].data[j] = parameter.data[j];
  }
  return oracle;
}

void oracle_model_free(oracle_model *oracle) {
  for (size_t i = 0; i < oracle->count; i++) free(oracle->weights[i].data);
  free(oracle->weights);
  free(oracle);
}

double *oracle_model_weight(oracle_model *oracle, const char *name) {
  for (size_t i = 0; i < oracle->count; i++)
    if (!strcmp(oracle->weights[i].name, name)) return oracle->weights[i].data;
  fprintf(stderr, "oracle: the model has no weight '%s'\n", name);
  abort();
}

static const double *layer_weight(oracle_model *oracle, int64_t layer, const char *name) {
  char full[128];
  snprintf(full, sizeof full, "model.layers.%d.%s", (int)layer, name);
  return oracle_model_weight(oracle, full);
}

static double sigmoid(double x) {
  return 1 / (1 + exp(-x));
}

static double silu(double x) {
  return x * sigmoid(x);
}

static double softplus(double x) {
  return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

/* y (rows,out) = x (rows,in) W (out,in)^T */
static double *project(const double *x, const double *W, int64_t rows, int64_t in, int64_t out) {
  double *y = zeros(rows * out);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t o = 0; o < out; o++)
      for (int64_t i = 0; i < in; i++) y[r * out + o] += x[r * in + i] * W[o * in + i];
  return y;
}

/* y = x w / sqrt(mean x^2 + epsilon), row by row */
static double *rms_norm(const double *x, const double *w, int64_t rows, int64_t size, double epsilon) {
  double *y = zeros(rows * size);
  for (int64_t r = 0; r < rows; r++) {
    double sum = 0;
    for (int64_t i = 0; i < size; i++) sum += x[r * size + i] * x[r * size + i];
    for (int64_t i = 0; i < size; i++) y[r * size + i] = x[r * size + i] * w[i] / sqrt(sum / (double)size + epsilon);
  }
  return y;
}

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
  default: return silu(x);
  }
}

/* f of W x, after a causal convolution where there are taps: y_t = sum_j w_j x_{t - (taps - 1) + j} */
static double *features(oracle_model *oracle, int64_t layer, char which, const double *x, int64_t T, int64_t channels) {
  const int64_t taps = oracle->config.taps;
  char name[64];
  snprintf(name, sizeof name, "attn.%c_proj.weight", which);
  double *linear = project(x, layer_weight(oracle, layer, name), T, oracle->config.hidden, channels);
  double *y = zeros(T * channels);
  if (taps) {
    snprintf(name, sizeof name, "attn.%c_conv1d.weight", which);
    const double *w = layer_weight(oracle, layer, name);
    for (int64_t t = 0; t < T; t++)
      for (int64_t c = 0; c < channels; c++)
        for (int64_t j = 0; j < taps; j++)
          if (t - (taps - 1) + j >= 0)
            y[t * channels + c] += w[c * taps + j] * linear[(t - (taps - 1) + j) * channels + c];
  } else {
    memcpy(y, linear, (size_t)(T * channels) * sizeof *y);
  }
  const oracle_activation activation = which == 'v' ? ORACLE_ACTIVATION_SILU : oracle->config.activation;
  for (int64_t i = 0; i < T * channels; i++) y[i] = activate(activation, y[i]);
  free(linear);
  return y;
}

/* ln alpha (T,HV) */
static double *log_decay(oracle_model *oracle, int64_t layer, const double *x, int64_t T) {
  const oracle_config *c = &oracle->config;
  const int64_t HV = c->value_heads;
  if (c->decay == ORACLE_DECAY_ABSENT) return zeros(T * HV);
  const double *A_log = layer_weight(oracle, layer, "attn.A_log"),
               *dt_bias = layer_weight(oracle, layer, "attn.dt_bias");
  double *g = project(x, layer_weight(oracle, layer, "attn.a_proj.weight"), T, c->hidden, HV);
  for (int64_t i = 0; i < T * HV; i++) {
    const double bias = dt_bias[i % HV], rate = exp(A_log[i % HV]), u = g[i] + bias;
    switch (c->decay) {
    case ORACLE_DECAY_MAMBA2: g[i] = -rate * softplus(u); break;
    case ORACLE_DECAY_SIGMOID: g[i] = -softplus(-u); break;
    case ORACLE_DECAY_CONSTANT: g[i] = -rate * softplus(bias); break;
    default: g[i] = 0; break;
    }
  }
  return g;
}

/* q, k (T,H,K) become what the recurrence reads; returns p (T,H,K). */
static double *control(oracle_model *oracle, int64_t layer, double *q, double *k, int64_t T) {
  const oracle_config *c = &oracle->config;
  const int64_t H = c->heads, K = c->key_size, rows = T * H;
  const double *decay = c->no_inner_decay ? NULL : layer_weight(oracle, layer, "attn.decay");
  const double *D = c->no_correction ? NULL : layer_weight(oracle, layer, "attn.D");
  double *p = zeros(rows * K);
  if (c->correction_after_norm) {
    normalize(c, q, rows, K);
    normalize(c, k, rows, K);
  }
  for (int64_t i = 0; i < rows * K; i++) {
    const int64_t h = i / K % H;
    const double scaled = decay ? sigmoid(decay[h]) * k[i] : k[i];
    if (D) q[i] -= D[h] * scaled;
  }
  if (!c->correction_after_norm) normalize(c, q, rows, K);
  double *raw = zeros(rows * K);
  memcpy(raw, k, (size_t)(rows * K) * sizeof *raw);
  if (!c->correction_after_norm) normalize(c, k, rows, K);
  for (int64_t i = 0; i < rows * K; i++) {
    const int64_t h = i / K % H;
    const double b = decay && !c->no_feedback_decay ? sigmoid(decay[h]) : 1;
    p[i] = b * (c->feedback_not_unit ? k[i] : raw[i]);
  }
  if (!c->feedback_not_unit) normalize(c, p, rows, K);
  free(raw);
  return p;
}

/* o (T,HV,V) */
static double *recur(const oracle_config *c, const double *q, const double *k, const double *p, const double *v,
                     const double *beta, const double *g, int64_t T) {
  const int64_t H = c->heads, HV = c->value_heads, K = c->key_size, V = c->value_size;
  double *o = zeros(T * HV * V), *S = zeros(K * V);
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
    memset(S, 0, (size_t)(K * V) * sizeof *S);
    recurrence_run(&head, S);
  }
  free(S);
  return o;
}

/* y (T,d) from the normed x (T,d) */
static double *mix(oracle_model *oracle, int64_t layer, const double *x, int64_t T) {
  const oracle_config *c = &oracle->config;
  const int64_t d = c->hidden, H = c->heads, HV = c->value_heads, V = c->value_size;
  double *q = features(oracle, layer, 'q', x, T, H * c->key_size);
  double *k = features(oracle, layer, 'k', x, T, H * c->key_size);
  double *v = features(oracle, layer, 'v', x, T, HV * V);
  double *beta =
      c->fixed_beta ? zeros(T * HV) : project(x, layer_weight(oracle, layer, "attn.b_proj.weight"), T, d, HV);
  for (int64_t i = 0; i < T * HV; i++) beta[i] = c->beta_scale * (c->fixed_beta ? 1 : sigmoid(beta[i]));
  double *g = log_decay(oracle, layer, x, T);
  double *p = control(oracle, layer, q, k, T);
  double *o = recur(c, q, k, p, v, beta, g, T);
  double *n = rms_norm(o, layer_weight(oracle, layer, "attn.o_norm.weight"), T * HV, V, c->norm_epsilon);
  if (c->gate != ORACLE_GATE_NONE) {
    double *z = project(x, layer_weight(oracle, layer, "attn.g_proj.weight"), T, d, HV * V);
    for (int64_t i = 0; i < T * HV * V; i++) n[i] *= c->gate == ORACLE_GATE_SWISH ? silu(z[i]) : sigmoid(z[i]);
    free(z);
  }
  double *y = project(n, layer_weight(oracle, layer, "attn.o_proj.weight"), T, HV * V, d);
  double *const scratch[] = {q, k, v, beta, g, p, o, n};
  for (size_t i = 0; i < sizeof scratch / sizeof *scratch; i++) free(scratch[i]);
  return y;
}

/* down(silu(gate x) * up x) */
static double *mlp(oracle_model *oracle, int64_t layer, const double *x, int64_t T) {
  const int64_t d = oracle->config.hidden, m = oracle->config.mlp;
  double *gate = project(x, layer_weight(oracle, layer, "mlp.gate_proj.weight"), T, d, m);
  double *up = project(x, layer_weight(oracle, layer, "mlp.up_proj.weight"), T, d, m);
  for (int64_t i = 0; i < T * m; i++) up[i] *= silu(gate[i]);
  double *y = project(up, layer_weight(oracle, layer, "mlp.down_proj.weight"), T, m, d);
  free(gate);
  free(up);
  return y;
}

/* x += branch(RMSNorm(x)) */
static void add_branch(oracle_model *oracle, int64_t layer, const char *norm, double *x, int64_t T,
                       double *(*branch)(oracle_model *, int64_t, const double *, int64_t)) {
  const int64_t d = oracle->config.hidden;
  double *n = rms_norm(x, layer_weight(oracle, layer, norm), T, d, oracle->config.norm_epsilon);
  double *y = branch(oracle, layer, n, T);
  for (int64_t i = 0; i < T * d; i++) x[i] += y[i];
  free(n);
  free(y);
}

static void run_sequence(oracle_model *oracle, const int32_t *ids, int64_t T, double *logits) {
  const oracle_config *c = &oracle->config;
  const int64_t d = c->hidden;
  const double *embeddings = oracle_model_weight(oracle, "model.embeddings.weight");
  double *x = zeros(T * d);
  for (int64_t t = 0; t < T; t++) memcpy(x + t * d, embeddings + ids[t] * d, (size_t)d * sizeof *x);
  for (int64_t layer = 0; layer < c->layers; layer++) {
    add_branch(oracle, layer, "attn_norm.weight", x, T, mix);
    if (c->mlp) add_branch(oracle, layer, "mlp_norm.weight", x, T, mlp);
  }
  double *n = rms_norm(x, oracle_model_weight(oracle, "model.norm.weight"), T, d, c->norm_epsilon);
  double *y = project(n, c->tied ? embeddings : oracle_model_weight(oracle, "lm_head.weight"), T, d, c->vocabulary);
  memcpy(logits, y, (size_t)(T * c->vocabulary) * sizeof *logits);
  free(x);
  free(n);
  free(y);
}

static double cross_entropy(const double *logits, int64_t count, int64_t target) {
  double largest = logits[0], sum = 0;
  for (int64_t i = 1; i < count; i++) largest = fmax(largest, logits[i]);
  for (int64_t i = 0; i < count; i++) sum += exp(logits[i] - largest);
  return largest + log(sum) - logits[target];
}

void oracle_model_forward(oracle_model *oracle, const int32_t *ids, int64_t batch, int64_t length, double *logits,
                          double *loss) {
  const int64_t vocabulary = oracle->config.vocabulary;
  double sum = 0;
  for (int64_t b = 0; b < batch; b++) {
    double *own = logits + b * length * vocabulary;
    run_sequence(oracle, ids + b * length, length, own);
    for (int64_t t = 0; t + 1 < length; t++)
      sum += cross_entropy(own + t * vocabulary, vocabulary, ids[b * length + t + 1]);
  }
  if (loss) *loss = length > 1 ? sum / (double)(batch * (length - 1)) : 0;
}
