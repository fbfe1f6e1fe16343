/* rwkv7: RWKV-7 "Goose" (arXiv 2503.14456), with the block around it.
 *
 *   x_* = x_t + (x_{t-1} - x_t) mu_*                   six mixes of a token and the one before it
 *   r, k, v = W x_r, W x_k, W x_v;  a = sigmoid(A(x_a));  w = -e^(-1/2) sigmoid(D(x_w));  gate = G(x_g)
 *   v = v + (v_first - v) sigmoid(N(x_v)), v_first the v of the first layer
 *   u = k k_k, each head normalised to length 1;  k' = k (1 + (a - 1) k_a)
 *   S_t = diag(e^{w_t}) S_{t-1} - (u_t a_t) (S_{t-1}^T u_t)^T + k'_t v_t^T,  o_t = S_t^T r_t
 *   y = W_o ((GroupNorm(o) + (sum_c r_c k'_c r_k,c) v) * gate)
 *
 * A, D, G, N are low-rank maps. The block has LayerNorms, one more before the first layer, and its own channel mix:
 *   y = W_value relu(W_key (x_t + (x_{t-1} - x_t) mu))^2 */
#include "mixers/mixer.h"

#include <math.h>
#include <stddef.h>

#include "mixers/recurrence.h"

static const double DECAY_SCALE = 0.6065306597126334; /* e^(-1/2): no channel forgets faster */

typedef struct config {
  int64_t head_dim, num_heads, value_dim;
  int64_t decay_low_rank_dim, gate_low_rank_dim, a_low_rank_dim, v_low_rank_dim;
  bool norm_first, norm_bias, fuse_norm;
  int hidden_act;
} config;

static int64_t head_size(const config *c, int64_t d) {
  return c->head_dim ? c->head_dim : c->num_heads ? d / c->num_heads : 0;
}

/* Where the config has null: factor * sqrt(d) to the nearest multiple of 32, at least 32, as fla's layer chooses. */
static int64_t rank(int64_t given, double factor, int64_t d) {
  return given ? given : 32 * (int64_t)fmax(1, rint(factor * sqrt((double)d) / 32));
}

static int64_t value_channels(const config *c, int64_t d) {
  return c->value_dim ? c->value_dim : d;
}

/* ---- Initial values, by the place of the layer and the channel ---------------------------------------------------- */

static int64_t layers(const comba_build *build) {
  return build->config ? build->config->num_hidden_layers : 1;
}

/* From 1 in the first layer down towards 0. */
static double height(const comba_build *build) {
  return 1 - (double)build->layer / (double)layers(build);
}

/* From 0 in the first layer to 1 in the last. */
static double depth(const comba_build *build) {
  return layers(build) > 1 ? (double)build->layer / (double)(layers(build) - 1) : 0;
}

static double share(int64_t n, int64_t count) {
  return count > 1 ? (double)n / (double)(count - 1) : 0;
}

/* Signed square of the place inside a head of K channels, from -1 to 1. */
static double zigzag(int64_t n, double K) {
  const double half = (K - 1) / 2, z = half > 0 ? (fmod((double)n, K) - half) / half : 0;
  return z * fabs(z);
}

static double mix_ramp(int64_t n, int64_t count, double exponent, double unused) {
  (void)unused;
  return 1 - pow((double)n / (double)count, exponent);
}

static double decay_ramp(int64_t n, int64_t count, double exponent, double K) {
  return -5.5 + 6 * pow(share(n, count), exponent) + 2.5 * zigzag(n, K);
}

static double a_ramp(int64_t n, int64_t count, double K, double unused) {
  (void)unused;
  return -0.19 + 0.3 * zigzag(n, K) + 0.4 * (share(n, count) - 0.5);
}

static double linear_ramp(int64_t n, int64_t count, double middle, double slope) {
  return middle + slope * (share(n, count) - 0.5);
}

/* ---- Parts -------------------------------------------------------------------------------------------------------- */

static comba_tensor *matrix(comba_build *build, const char *name, comba_tensor *x, int64_t outputs,
                            comba_distribution distribution, double a) {
  if (!x) return NULL;
  const size_t length = comba_build_enter(build, "%s", name);
  comba_tensor *weight = comba_build_parameter(build, "weight", COMBA_SHAPE(outputs, x->shape.size[2]),
                                               COMBA_ROLE_MATRIX, (comba_initial){distribution, a});
  comba_build_leave(build, length);
  return comba_linear(build->graph, x, weight, NULL);
}

/* A low-rank map; bias: its ramp, NULL: none. */
static comba_tensor *low_rank(comba_build *build, const char *name, comba_tensor *x, int64_t rank, int64_t outputs,
                              const comba_function *function, const comba_ramp *bias) {
  const size_t length = comba_build_enter(build, "%s_lora.lora", name);
  comba_tensor *y = matrix(build, "0", x, rank, COMBA_DRAW_CONSTANT, 0);
  if (function) y = comba_activation(build->graph, y, *function, 1);
  const double gain = rank > outputs ? sqrt((double)rank / (double)outputs) : 1;
  comba_tensor *weight = comba_build_parameter(build, "2.weight", COMBA_SHAPE(outputs, rank), COMBA_ROLE_MATRIX,
                                               (comba_initial){COMBA_DRAW_ORTHOGONAL, 0.1 * gain});
  comba_tensor *offset = bias ? comba_build_ramp(build, "2.bias", COMBA_SHAPE(outputs), *bias) : NULL;
  comba_build_leave(build, length);
  return comba_linear(build->graph, y, weight, offset);
}

/* The token before each one; the state "shift" holds the last. */
static comba_tensor *shift(comba_build *build, comba_tensor *x) {
  if (!x) return NULL;
  comba_tensor *before = comba_build_state(build, "shift", COMBA_SHAPE(build->batch, x->shape.size[2])), *after = NULL;
  comba_tensor *y = comba_token_shift(build->graph, x, before, build->cu_seqlens, &after);
  comba_build_update(build, before, after);
  return y;
}

/* x + (shifted - x) mu, mu the parameter NAME (1,1,d). */
static comba_tensor *mix(comba_build *build, const char *name, comba_tensor *x, comba_tensor *shifted,
                         double exponent) {
  if (!x) return NULL;
  const int64_t d = x->shape.size[2];
  comba_tensor *mu =
      comba_build_ramp(build, name, COMBA_SHAPE(1, 1, d), (comba_ramp){mix_ramp, exponent * height(build), 0});
  return comba_lerp(build->graph, x, shifted, comba_reshape(build->graph, mu, COMBA_SHAPE(d)));
}

/* Log decay (B,T,H,K). */
static comba_tensor *decay(comba_build *build, const config *c, comba_tensor *x, comba_shape heads) {
  static const comba_function tanh_function = COMBA_TANH;
  const comba_ramp bias = {decay_ramp, 1 + pow(depth(build), 0.3), (double)heads.size[3]};
  const int64_t channels = heads.size[2] * heads.size[3];
  const int64_t size = rank(c->decay_low_rank_dim, 2.5 * (double)heads.size[3] / 64, channels);
  comba_tensor *w = low_rank(build, "w", x, size, channels, &tanh_function, &bias);
  const comba_channel_decay_attributes attributes = {.kind = COMBA_CHANNEL_SIGMOID, .scale = DECAY_SCALE};
  return comba_channel_decay(build->graph, comba_reshape(build->graph, w, heads), NULL, NULL, attributes);
}

/* v, mixed with that of the first layer that has one, which becomes it. */
static comba_tensor *values(comba_build *build, const config *c, comba_tensor *x, int64_t channels) {
  comba_graph *graph = build->graph;
  comba_tensor *v = matrix(build, "v_proj", x, channels, COMBA_DRAW_ORTHOGONAL, 1);
  if (!build->first_value) return build->first_value = v;
  const comba_ramp bias = {linear_ramp, 0.73, -0.4};
  const int64_t d = x->shape.size[2], size = rank(c->v_low_rank_dim, 1.7 * (double)head_size(c, d) / 64, d);
  comba_tensor *share_of_first = low_rank(build, "v", x, size, channels, NULL, &bias);
  return comba_lerp(graph, v, build->first_value, comba_activation(graph, share_of_first, COMBA_SIGMOID, 1));
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  static const comba_function sigmoid = COMBA_SIGMOID;
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, T = build->length, d = x->shape.size[2];
  const int64_t K = head_size(c, d), H = d / K, channels = value_channels(c, d), V = channels / H;
  const comba_shape keys = COMBA_SHAPE(B, T, H, K), outputs = COMBA_SHAPE(B, T, H, V);
  comba_tensor *shifted = shift(build, x);

  comba_tensor *r = matrix(build, "r_proj", mix(build, "x_r", x, shifted, 0.2), d, COMBA_DRAW_ORTHOGONAL, 1);
  comba_tensor *w = decay(build, c, mix(build, "x_w", x, shifted, 0.9), keys);
  comba_tensor *k = matrix(build, "k_proj", mix(build, "x_k", x, shifted, 0.7), d, COMBA_DRAW_ORTHOGONAL, 0.1);
  comba_tensor *v = values(build, c, mix(build, "x_v", x, shifted, 0.7), channels);
  const comba_ramp a_bias = {a_ramp, (double)K, 0};
  const int64_t a_rank = rank(c->a_low_rank_dim, 2.5 * (double)K / 64, d), gate_rank = rank(c->gate_low_rank_dim, 5, d);
  comba_tensor *a = low_rank(build, "a", mix(build, "x_a", x, shifted, 0.9), a_rank, d, NULL, &a_bias);
  a = comba_activation(graph, a, COMBA_SIGMOID, 1);
  comba_tensor *gate = low_rank(build, "g", mix(build, "x_g", x, shifted, 0.2), gate_rank, channels, &sigmoid, NULL);

  comba_tensor *k_k = comba_build_ramp(build, "k_k", COMBA_SHAPE(d), (comba_ramp){linear_ramp, 0.71, -0.1});
  comba_tensor *u = comba_reshape(graph, comba_product(graph, k, k_k), keys);
  u = comba_l2_norm(graph, u, c->fuse_norm ? 1e-6 : 1e-24); /* unfused: a length of at least 1e-12 */
  k = comba_lerp(graph, k, comba_product(graph, k, a), comba_build_vector(build, "k_a", d, 1.02));
  r = comba_reshape(graph, r, keys);
  k = comba_reshape(graph, k, keys);
  v = comba_reshape(graph, v, outputs);
  comba_tensor *back = comba_scaled_product(graph, u, comba_reshape(graph, a, keys), -1);

  comba_tensor *o = comba_build_diagonal_decay(build, "recurrent", r, k, v, w, u, back,
                                               (comba_diagonal_decay_attributes){.scale = 1});

  const double level = pow((double)(build->layer + 1) / (double)layers(build), 0.7);
  comba_tensor *weight = comba_build_vector(build, "g_norm.weight", channels, level);
  comba_tensor *bias = comba_build_vector(build, "g_norm.bias", channels, 0);
  o = comba_layer_norm(graph, o, comba_reshape(graph, weight, COMBA_SHAPE(H, V)),
                       comba_reshape(graph, bias, COMBA_SHAPE(H, V)), (double)K * build->norm_eps);
  comba_tensor *r_k = comba_build_parameter(build, "r_k", COMBA_SHAPE(H, K), COMBA_ROLE_VECTOR,
                                            (comba_initial){COMBA_DRAW_CONSTANT, -0.04});
  o = comba_reshape(graph, comba_bonus(graph, o, r, k, v, r_k), COMBA_SHAPE(B, T, channels));
  return matrix(build, "o_proj", comba_product(graph, o, gate), d, COMBA_DRAW_UNIFORM,
                1 / sqrt(2.0 * (double)(channels * layers(build))));
}

/* ---- The block ---------------------------------------------------------------------------------------------------- */

static comba_tensor *build_norm(comba_build *build, const void *opaque, const char *name, comba_tensor *x) {
  if (!x) return NULL;
  const int64_t d = x->shape.size[2];
  const size_t length = comba_build_enter(build, "%s", name);
  comba_tensor *weight = comba_build_vector(build, "weight", d, 1);
  comba_tensor *bias = ((const config *)opaque)->norm_bias ? comba_build_vector(build, "bias", d, 0) : NULL;
  comba_build_leave(build, length);
  return comba_layer_norm(build->graph, x, weight, bias, build->norm_eps);
}

static comba_tensor *build_enter(comba_build *build, const void *opaque, comba_tensor *x) {
  return ((const config *)opaque)->norm_first ? build_norm(build, opaque, "pre_norm", x) : x;
}

static comba_tensor *build_channel_mix(comba_build *build, const void *opaque, comba_tensor *x) {
  static const comba_function functions[] = {COMBA_SQUARED_RELU, COMBA_RELU, COMBA_SILU, COMBA_SILU};
  if (!x) return NULL;
  const comba_config *model = build->config;
  const int64_t d = x->shape.size[2];
  const int64_t m = model->intermediate_size ? model->intermediate_size : (d * model->hidden_ratio + 31) / 32 * 32;
  const size_t length = comba_build_enter(build, "ffn");
  comba_tensor *shifted = shift(build, x);
  comba_tensor *mu = comba_build_ramp(build, "x_k", COMBA_SHAPE(d), (comba_ramp){mix_ramp, pow(height(build), 4), 0});
  comba_tensor *y = comba_lerp(build->graph, x, shifted, mu);
  y = matrix(build, "key", y, m, COMBA_DRAW_ORTHOGONAL, 1);
  y = comba_activation(build->graph, y, functions[((const config *)opaque)->hidden_act], 1);
  y = matrix(build, "value", y, d, COMBA_DRAW_CONSTANT, 0);
  comba_build_leave(build, length);
  return y;
}

static const char *const mixes[] = {"attn.x_r", "attn.x_w", "attn.x_k", "attn.x_v", "attn.x_a", "attn.x_g"};
static const comba_packed packed = {"attn.x_x", mixes, sizeof mixes / sizeof *mixes};

static comba_initial head_initial(int64_t vocabulary, int64_t d) {
  const double gain = vocabulary > d ? sqrt((double)vocabulary / (double)d) : 1;
  return (comba_initial){COMBA_DRAW_ORTHOGONAL, 0.5 * gain};
}

static const comba_block block = {
    .norm = build_norm,
    .enter = build_enter,
    .mlp_norm = "ffn_norm",
    .mlp = build_channel_mix,
    .embeddings = {COMBA_DRAW_UNIFORM, 1e-4},
    .head = head_initial,
};

/* ---- Row ---------------------------------------------------------------------------------------------------------- */

static const char *const activations[] = {"sqrelu", "relu", "swish", "silu", NULL};

#define FIELD(member) offsetof(config, member)
#define RANK(name, size, text)                                                                                         \
  {                                                                                                                    \
#name, COMBA_FIELD_INTEGER, FIELD(name), .default_value = size, .minimum = 1, .maximum = 65536, .nullable = true,  \
                                             .help = text                                                              \
  }
static const comba_field fields[] = {
    {"head_dim", COMBA_FIELD_INTEGER, FIELD(head_dim), .default_value = 64, .minimum = 1, .maximum = 4096,
     .nullable = true, .null_value = 0, .help = "key size of a head; null: hidden_size / num_heads"},
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 0, .minimum = 1, .maximum = 65536,
     .nullable = true, .null_value = 0, .help = "heads, where head_dim is null"},
    {"value_dim", COMBA_FIELD_LAYERS, FIELD(value_dim), .default_value = 0, .minimum = 1, .maximum = 1 << 20,
     .nullable = true, .null_value = 0, .help = "value size of all heads, the same in each layer; null: hidden_size"},
    RANK(decay_low_rank_dim, 64, "rank of the decay's map; null, here and below: by hidden_size and head_dim"),
    RANK(gate_low_rank_dim, 128, "rank of the output gate's map"),
    RANK(a_low_rank_dim, 64, "rank of the map to a, the rate at which the state is overwritten"),
    RANK(v_low_rank_dim, 16, "rank of the map to the share of the first layer's v"),
    {"hidden_act", COMBA_FIELD_CHOICE, FIELD(hidden_act), .default_value = 0, .choices = activations,
     .help = "of the channel mix"},
    {"norm_first", COMBA_FIELD_BOOLEAN, FIELD(norm_first), .default_value = 1, .help = "a norm before the first layer"},
    {"norm_bias", COMBA_FIELD_BOOLEAN, FIELD(norm_bias), .default_value = 1, .help = "biases of the block's norms"},
    {"fuse_norm", COMBA_FIELD_BOOLEAN, FIELD(fuse_norm), .default_value = 1,
     .help = "true: keys are divided by sqrt(length^2 + 1e-6); false: by their length"},
    {0}};

static const comba_default language_defaults[] = {{"use_l2warp", 1}, {0}};
static const comba_default vision_defaults[] = {{"initializer_range", 0.006}, {0}};

static comba_status check(const void *opaque, int64_t d) {
  const config *c = opaque;
  const int64_t K = head_size(c, d);
  if (!K || d % K)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s is %lld, expected a divisor of hidden_size %lld",
                      c->head_dim || !c->num_heads ? "head_dim" : "num_heads",
                      (long long)(c->head_dim ? c->head_dim : c->num_heads), (long long)d);
  if (value_channels(c, d) % (d / K))
    return comba_fail(COMBA_ERROR_ARGUMENT, "value_dim is %lld, expected a multiple of the number of heads %lld",
                      (long long)c->value_dim, (long long)(d / K));
  return COMBA_OK;
}

static comba_mixer_cost cost(const void *opaque, int64_t d) {
  const double state = (double)(head_size(opaque, d) * value_channels(opaque, d));
  return (comba_mixer_cost){.state_elements = state, .flops_per_token = 9 * state};
}

const comba_mixer_row comba_mixer_rwkv7 = {
    .model_type = "rwkv7",
    .recurrence = "S_t = S_{t-1} (diag(w_t) - u_t (a_t u_t)^T) + v_t k_t^T;  o_t = S_t r_t",
    .source = "RWKV-7 \"Goose\" with Expressive Dynamic State Evolution, arXiv 2503.14456",
    .fields = fields,
    .vision_defaults = vision_defaults,
    .language_defaults = language_defaults,
    .block = &block,
    .packed = &packed,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
