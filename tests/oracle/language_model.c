#include "language_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "softmax_attention.h"

struct oracle_weight {
  char name[128];
  int64_t shape[4];
  double *data;
};

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) abort();
  return memory;
}

oracle_model *oracle_model_create(const oracle_family *family, const void *config, const comba_model *model) {
  oracle_model *oracle = allocate(1, sizeof *oracle);
  comba_model_info info;
  comba_model_describe(model, &info);
  oracle->family = family;
  oracle->config = config;
  oracle->hidden = info.hidden_size;
  oracle->layers = info.layers;
  oracle->vocabulary = info.vocab_size;
  oracle->norm_epsilon = family->norm_epsilon > 0 ? family->norm_epsilon : 1e-6;
  oracle->count = comba_model_parameters(model);
  oracle->weights = allocate(oracle->count, sizeof *oracle->weights);
  for (size_t i = 0; i < oracle->count; i++) {
    oracle_weight *weight = &oracle->weights[i];
    comba_parameter parameter;
    if (comba_model_parameter(model, i, &parameter) != COMBA_OK) abort();
    snprintf(weight->name, sizeof weight->name, "%s", parameter.name);
    memcpy(weight->shape, parameter.shape, (size_t)parameter.rank * sizeof *weight->shape);
    weight->data = allocate((size_t)parameter.elements, sizeof *weight->data);
    for (int64_t j = 0; j < parameter.elements; j++) weight->data[j] = parameter.data[j];
  }
  return oracle;
}

static void release_blocks(oracle_model *oracle) {
  for (size_t i = 0; i < oracle->block_count; i++) free(oracle->blocks[i]);
  free(oracle->blocks);
  oracle->blocks = NULL;
  oracle->block_count = 0;
}

void oracle_model_free(oracle_model *oracle) {
  release_blocks(oracle);
  for (size_t i = 0; i < oracle->count; i++) free(oracle->weights[i].data);
  free(oracle->weights);
  free(oracle);
}

double *oracle_zeros(oracle_model *oracle, int64_t count) {
  oracle->blocks = realloc(oracle->blocks, (oracle->block_count + 1) * sizeof *oracle->blocks);
  if (!oracle->blocks) abort();
  return oracle->blocks[oracle->block_count++] = allocate((size_t)count, sizeof(double));
}

/* ---- Weights ------------------------------------------------------------------------------------------------------ */

static oracle_weight *find(oracle_model *oracle, const char *name) {
  for (size_t i = 0; i < oracle->count; i++)
    if (!strcmp(oracle->weights[i].name, name)) return &oracle->weights[i];
  return NULL;
}

static oracle_weight *need(oracle_model *oracle, const char *name) {
  oracle_weight *weight = find(oracle, name);
  if (weight) return weight;
  fprintf(stderr, "oracle: the model has no weight '%s'\n", name);
  abort();
}

typedef struct full_name {
  char text[256];
} full_name;

static full_name below_prefix(const oracle_model *oracle, const char *name, const char *suffix) {
  full_name full;
  snprintf(full.text, sizeof full.text, "%s%s%s", oracle->prefix, name, suffix);
  return full;
}

double *oracle_model_weight(oracle_model *oracle, const char *name) {
  return need(oracle, name)->data;
}

const double *oracle_weight_of(oracle_model *oracle, const char *name) {
  return need(oracle, below_prefix(oracle, name, "").text)->data;
}

bool oracle_has(oracle_model *oracle, const char *name) {
  return find(oracle, below_prefix(oracle, name, "").text);
}

int64_t oracle_extent(oracle_model *oracle, const char *name, int dimension) {
  return need(oracle, below_prefix(oracle, name, "").text)->shape[dimension];
}

/* ---- Parts -------------------------------------------------------------------------------------------------------- */

double *oracle_linear(oracle_model *oracle, const char *name, const double *x) {
  const oracle_weight *W = need(oracle, below_prefix(oracle, name, ".weight").text);
  const oracle_weight *bias = find(oracle, below_prefix(oracle, name, ".bias").text);
  const int64_t out = W->shape[0], in = W->shape[1];
  double *y = oracle_zeros(oracle, oracle->length * out);
  for (int64_t t = 0; t < oracle->length; t++)
    for (int64_t o = 0; o < out; o++) {
      double sum = bias ? bias->data[o] : 0;
      for (int64_t i = 0; i < in; i++) sum += x[t * in + i] * W->data[o * in + i];
      y[t * out + o] = sum;
    }
  return y;
}

double *oracle_convolution(oracle_model *oracle, const char *name, const double *x) {
  const oracle_weight *w = need(oracle, below_prefix(oracle, name, ".weight").text);
  const oracle_weight *bias = find(oracle, below_prefix(oracle, name, ".bias").text);
  const int64_t channels = w->shape[0], taps = w->shape[2];
  double *y = oracle_zeros(oracle, oracle->length * channels);
  for (int64_t t = 0; t < oracle->length; t++)
    for (int64_t c = 0; c < channels; c++) {
      double sum = bias ? bias->data[c] : 0;
      for (int64_t j = 0; j < taps; j++)
        if (t - (taps - 1) + j >= 0) sum += w->data[c * taps + j] * x[(t - (taps - 1) + j) * channels + c];
      y[t * channels + c] = sum;
    }
  return y;
}

double *oracle_norm(oracle_model *oracle, const char *name, const double *x, int64_t rows, int64_t size,
                    double epsilon) {
  const oracle_weight *weight = find(oracle, below_prefix(oracle, name, ".weight").text);
  const oracle_weight *bias = find(oracle, below_prefix(oracle, name, ".bias").text);
  double *y = oracle_zeros(oracle, rows * size);
  for (int64_t r = 0; r < rows; r++) {
    const double *own = x + r * size;
    double mean = 0, square = 0;
    for (int64_t i = 0; i < size && bias; i++) mean += own[i] / (double)size;
    for (int64_t i = 0; i < size; i++) square += (own[i] - mean) * (own[i] - mean) / (double)size;
    for (int64_t i = 0; i < size; i++)
      y[r * size + i] =
          (own[i] - mean) / sqrt(square + epsilon) * (weight ? weight->data[i] : 1) + (bias ? bias->data[i] : 0);
  }
  return y;
}

void oracle_rotate(oracle_model *oracle, double *x, int64_t heads, int64_t D) {
  for (int64_t row = 0; row < oracle->length * heads; row++)
    for (int64_t j = 0; j < D / 2; j++) {
      const double angle = (double)(row / heads) * pow(10000, -2 * (double)j / (double)D);
      double *low = &x[row * D + j], *high = &x[row * D + j + D / 2], before = *low;
      *low = before * cos(angle) - *high * sin(angle);
      *high = *high * cos(angle) + before * sin(angle);
    }
}

double *oracle_attend(oracle_model *oracle, const double *x) {
  const oracle_attention *a = oracle->attention;
  const int64_t T = oracle->length, H = a->heads, G = a->kv_heads, D = oracle->hidden / H;
  double *q = oracle_linear(oracle, "q_proj", x), *k = oracle_linear(oracle, "k_proj", x);
  double *v = oracle_linear(oracle, "v_proj", x);
  if (oracle_has(oracle, "q_conv1d.weight")) {
    q = oracle_convolution(oracle, "q_conv1d", q);
    k = oracle_convolution(oracle, "k_conv1d", k);
    v = oracle_convolution(oracle, "v_conv1d", v);
  }
  if (oracle_has(oracle, "q_norm.weight")) {
    q = oracle_norm(oracle, "q_norm", q, T * H, D, 1e-5);
    k = oracle_norm(oracle, "k_norm", k, T * G, D, 1e-5);
  }
  oracle_rotate(oracle, q, H, D);
  oracle_rotate(oracle, k, G, D);
  double *o = oracle_zeros(oracle, T * H * D);
  for (int64_t h = 0; h < H; h++) {
    const int64_t shared = h / (H / G) * D;
    const softmax_attention head = {.T = T,
                                    .S = T,
                                    .D = D,
                                    .window = a->window,
                                    .causal = true,
                                    .scale = 1 / sqrt((double)D),
                                    .q = q + h * D,
                                    .k = k + shared,
                                    .v = v + shared,
                                    .query_stride = H * D,
                                    .key_stride = G * D,
                                    .o = o + h * D};
    softmax_attention_run(&head);
  }
  return oracle_linear(oracle, "o_proj", o);
}

double *oracle_mlp(oracle_model *oracle, const double *x) {
  const int64_t count = oracle->length * oracle_extent(oracle, "up_proj.weight", 0);
  const double *gate = oracle_linear(oracle, "gate_proj", x);
  double *up = oracle_linear(oracle, "up_proj", x);
  for (int64_t i = 0; i < count; i++) up[i] *= oracle_silu(gate[i]);
  return oracle_linear(oracle, "down_proj", up);
}

void oracle_add_branch(oracle_model *oracle, const char *norm, const char *prefix, double *x,
                       double *(*branch)(oracle_model *oracle, const double *x)) {
  const int64_t T = oracle->length, d = oracle->hidden;
  const double *n = oracle_norm(oracle, norm, x, T, d, oracle->norm_epsilon);
  const size_t length = strlen(oracle->prefix);
  snprintf(oracle->prefix + length, sizeof oracle->prefix - length, "%s.", prefix);
  const double *y = branch(oracle, n);
  oracle->prefix[length] = 0;
  for (int64_t i = 0; i < T * d; i++) x[i] += y[i];
}

/* ---- The model ---------------------------------------------------------------------------------------------------- */

static double *front(oracle_model *oracle, const double *x) {
  return oracle_convolution(oracle, "conv", x);
}

static void run_block(oracle_model *oracle, double *x) {
  if (oracle_has(oracle, "conv.conv.weight")) oracle_add_branch(oracle, "conv.norm", "conv", x, front);
  const bool attends = oracle->attention && oracle->attention->layers >> oracle->layer & 1;
  oracle_add_branch(oracle, "attn_norm", "attn", x, attends ? oracle_attend : oracle->family->mix);
  if (oracle_has(oracle, "mlp.up_proj.weight")) oracle_add_branch(oracle, "mlp_norm", "mlp", x, oracle_mlp);
}

static void run_sequence(oracle_model *oracle, const int32_t *ids, int64_t T, double *logits) {
  const oracle_family *family = oracle->family;
  const char *root = family->root ? family->root : "model";
  const int64_t d = oracle->hidden, V = oracle->vocabulary;
  char *prefix = oracle->prefix;
  oracle->length = T;
  oracle->carried = NULL;
  snprintf(prefix, sizeof oracle->prefix, "%s.", root);
  const double *embeddings = oracle_weight_of(oracle, "embeddings.weight");
  double *x = oracle_zeros(oracle, T * d);
  for (int64_t t = 0; t < T; t++) memcpy(x + t * d, embeddings + ids[t] * d, (size_t)d * sizeof *x);
  for (oracle->layer = 0; oracle->layer < oracle->layers; oracle->layer++) {
    snprintf(prefix, sizeof oracle->prefix, "%s.layers.%d.", root, (int)oracle->layer);
    (family->block ? family->block : run_block)(oracle, x);
  }
  snprintf(prefix, sizeof oracle->prefix, "%s.", root);
  const double *n =
      oracle_norm(oracle, family->final_norm ? family->final_norm : "norm", x, T, d, oracle->norm_epsilon);
  prefix[0] = 0;
  const double *head = oracle_has(oracle, "lm_head.weight") ? oracle_weight_of(oracle, "lm_head.weight") : embeddings;
  for (int64_t i = 0; i < T * V; i++) {
    logits[i] = 0;
    for (int64_t j = 0; j < d; j++) logits[i] += n[i / V * d + j] * head[i % V * d + j];
  }
  release_blocks(oracle);
}

static double cross_entropy(const double *logits, int64_t count, int64_t target) {
  double largest = logits[0], sum = 0;
  for (int64_t i = 1; i < count; i++) largest = fmax(largest, logits[i]);
  for (int64_t i = 0; i < count; i++) sum += exp(logits[i] - largest);
  return largest + log(sum) - logits[target];
}

void oracle_model_forward(oracle_model *oracle, const int32_t *ids, int64_t batch, int64_t length, double *logits,
                          double *loss) {
  const int64_t V = oracle->vocabulary;
  double sum = 0;
  for (int64_t b = 0; b < batch; b++) {
    double *own = logits + b * length * V;
    run_sequence(oracle, ids + b * length, length, own);
    for (int64_t t = 0; t + 1 < length; t++) sum += cross_entropy(own + t * V, V, ids[b * length + t + 1]);
  }
  if (loss) *loss = length > 1 ? sum / (double)(batch * (length - 1)) : 0;
}
