/* hgrn2: gated linear RNN with state expansion (arXiv 2404.07904).
 *
 *   q = silu(W_q x);  f = l + (1 - l) sigmoid(W_f x), l the layer's lower bound;  v = W_i x
 *   S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,  o_t = K^(-1/2) S_t^T q_t
 *   y = W_o RMSNorm(o), over all heads together
 *
 * The lower bounds are sums of a softmax over layers of the model's parameter lower_bounds (layers, hidden_size): 0 in the
 * first layer, and rising. A mixer outside a model has none, nor has a vision model (as
 * in fla-zoo, which reads use_lower_bound without effect). */
#include "mixers/expanded_heads.h"
#include "mixers/mixer.h"
#include "mixers/projection.h"
#include "mixers/recurrence.h"

#include <stddef.h>

/* fla fixes this one, whatever norm_eps says */
static const double NORM_EPSILON = 1e-5;

typedef struct config {
  int64_t num_heads, expand_ratio, conv_size;
  bool use_short_conv, use_lower_bound, elementwise_affine;
} config;

/* Where both are given, expand_ratio counts, as in fla's layer. */
static int64_t heads(const config *c, int64_t hidden_size) {
  return c->expand_ratio ? hidden_size / c->expand_ratio : c->num_heads;
}

static int64_t key_size(const config *c, int64_t hidden_size) {
  return c->expand_ratio ? c->expand_ratio : hidden_size / c->num_heads;
}

static comba_tensor *lower_bounds(comba_build *build, const config *c, int64_t d) {
  if (!c->use_lower_bound || !build->config || build->config->kind == COMBA_KIND_VISION) return NULL;
  const comba_shape shape = COMBA_SHAPE(build->config->num_hidden_layers, d);
  return comba_build_model_parameter(build, "lower_bounds", shape, COMBA_ROLE_VECTOR,
                                     (comba_initial){COMBA_DRAW_CONSTANT, 0});
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, T = build->length, d = x->shape.size[2];
  const int64_t H = heads(c, d), K = key_size(c, d), V = d / H, taps = c->use_short_conv ? c->conv_size : 0;

  comba_tensor *q = comba_build_projection(build, "q", x, H, K, taps, false);
  comba_tensor *f = comba_build_projection(build, "f", x, H, K, taps, false);
  comba_tensor *v = comba_build_projection(build, "i", x, H, V, taps, false);
  q = comba_activation(graph, q, COMBA_SILU, 1);
  comba_tensor *k = NULL, *g = comba_bounded_gate(graph, f, lower_bounds(build, c, d), build->layer, &k);

  comba_tensor *o =
      comba_build_diagonal_decay(build, "recurrent", q, k, v, g, NULL, NULL, (comba_diagonal_decay_attributes){0});
  o = comba_reshape(graph, o, COMBA_SHAPE(B, T, d));
  o = comba_rms_norm(graph, o, NULL, c->elementwise_affine ? comba_build_vector(build, "g_norm.weight", d, 1) : NULL,
                     NORM_EPSILON, NULL);
  return comba_linear(graph, o, comba_build_residual_weight(build, "o_proj.weight", COMBA_SHAPE(d, d)), NULL);
}

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 0, .minimum = 1, .maximum = 65536,
     .nullable = true, .null_value = 0, .help = "heads, where expand_ratio is null"},
    {"expand_ratio", COMBA_FIELD_INTEGER, FIELD(expand_ratio), .default_value = 128, .minimum = 1, .maximum = 4096,
     .nullable = true, .null_value = 0,
     .help = "key size of a head; there are hidden_size / expand_ratio of them. null: hidden_size / num_heads"},
    {"use_short_conv", COMBA_FIELD_BOOLEAN, FIELD(use_short_conv), .default_value = 0,
     .help = "causal depthwise convolution of q, f and i, without an activation"},
    {"conv_size", COMBA_FIELD_INTEGER, FIELD(conv_size), .default_value = 4, .minimum = 1, .maximum = 64,
     .help = "taps of the short convolution"},
    {"use_lower_bound", COMBA_FIELD_BOOLEAN, FIELD(use_lower_bound), .default_value = 1,
     .help = "learned lower bounds of the forget gates that rise over the layers"},
    COMBA_AFFINE_FIELD(config, elementwise_affine),
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const char *field = c->expand_ratio ? "expand_ratio" : "num_heads";
  const int64_t given = c->expand_ratio ? c->expand_ratio : c->num_heads, H = given ? heads(c, hidden_size) : 0;
  if (!given) return comba_fail(COMBA_ERROR_ARGUMENT, "expand_ratio and num_heads are null, expected one of them");
  if (H < 1 || hidden_size % H || (c->use_lower_bound && H * key_size(c, hidden_size) != hidden_size))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s is %lld, expected a divisor of hidden_size %lld", field,
                      (long long)given, (long long)hidden_size);
  return COMBA_OK;
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const double state = (double)(key_size(opaque, hidden_size) * hidden_size);
  return (comba_mixer_cost){.state_elements = state, .flops_per_token = 5 * state};
}

static const comba_default zoo_defaults[] = {{"use_short_conv", 1}, {0}};

const comba_mixer_row comba_mixer_hgrn2 = {
    .model_type = "hgrn2",
    .recurrence = "S_t = S_{t-1} diag(f_t) + v_t (1 - f_t)^T;  o_t = S_t q_t",
    .source = "HGRN2: Gated Linear RNNs with State Expansion, arXiv 2404.07904",
    .fields = fields,
    .vision_defaults = zoo_defaults,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
