/* mamba2: the state space model with scalar decay (arXiv 2405.21060).
 *
 *   z, u, dt = W_in x;  x, B, C = silu(conv(u));  dt = clamp(softplus(dt + dt_bias), dt_limit)
 *   S_t = e^{-exp(A_log) dt_t} S_{t-1} + dt_t B_t x_t^T,  y_t = S_t^T C_t + D x_t
 *   W_out RMSNorm(y * silu(z)), over the channels of each group; with norm_before_gate RMSNorm(y) * silu(z)
 *
 * There are expand d / head_dim heads. B and C (state_size) are shared by the consecutive heads of a group. Released models have
 * blocks of a norm and this layer alone, under names of their own. */
#include <math.h>
#include <stddef.h>

#include "mixers/delta_heads.h"
#include "mixers/mixer.h"
#include "mixers/projection.h"
#include "mixers/recurrence.h"

typedef struct config {
  int64_t head_dim, state_size, expand, n_groups, conv_kernel;
  double dt_limit[2];
  bool use_bias, use_conv_bias, D_has_hdim, rmsnorm, norm_before_gate, rescale_prenorm_residual;
} config;

/* Norm and gate of y (B,T,inner) by groups of channels */
static comba_tensor *gated_norm(comba_build *build, const config *c, comba_tensor *y, comba_tensor *z, int64_t inner) {
  comba_graph *graph = build->graph;
  if (!c->rmsnorm) return comba_swiglu(graph, z, y);
  const comba_shape grouped = COMBA_SHAPE(build->batch, build->length, c->n_groups, inner / c->n_groups);
  comba_tensor *weight = comba_build_vector(build, "norm.weight", inner, 1);
  y = comba_reshape(graph, y, grouped);
  z = comba_reshape(graph, z, grouped);
  y = c->norm_before_gate ? comba_gated_rms_norm(graph, y, z, weight, build->norm_eps, COMBA_SILU)
                          : comba_rms_norm(graph, comba_swiglu(graph, z, y), NULL, weight, build->norm_eps, NULL);
  return comba_reshape(graph, y, COMBA_SHAPE(build->batch, build->length, inner));
}

/* out_proj.weight; as released kaiming-uniform(sqrt 5) over the root of the number of layers */
static comba_tensor *output_weight(comba_build *build, const config *c, comba_shape shape) {
  if (!c->rescale_prenorm_residual || !build->config || build->config->initialization == COMBA_INITIALIZATION_PAPER)
    return comba_build_residual_weight(build, "out_proj.weight", shape);
  const double bound = 1 / sqrt((double)shape.size[1] * (double)build->config->num_hidden_layers);
  return comba_build_parameter(build, "out_proj.weight", shape, COMBA_ROLE_MATRIX,
                               (comba_initial){COMBA_DRAW_UNIFORM, bound});
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, T = build->length, d = x->shape.size[2], inner = c->expand * d;
  const int64_t P = c->head_dim, H = inner / P, N = c->state_size, G = c->n_groups, channels = inner + 2 * G * N;

  comba_tensor *part[2] = {NULL, NULL}; /* of the projection, then of the convolution */
  comba_tensor *z = comba_build_linear(build, "in_proj", x, inner + channels + H, c->use_bias);
  z = comba_split(graph, z, (comba_split_attributes){3, {inner, channels, H}}, part);
  comba_tensor *u = comba_build_convolution(build, "conv1d", part[0], c->conv_kernel, true, c->use_conv_bias);
  comba_tensor *dt = part[1];
  u = comba_split(graph, u, (comba_split_attributes){3, {inner, G * N, G * N}}, part);
  u = comba_reshape(graph, u, COMBA_SHAPE(B, T, H, P));
  comba_tensor *k = comba_reshape(graph, part[0], COMBA_SHAPE(B, T, G, N));
  comba_tensor *q = comba_reshape(graph, part[1], COMBA_SHAPE(B, T, G, N));

  comba_tensor *a_log = comba_build_head_scalar(build, "A_log", H, COMBA_DRAW_A_LOG, 1);
  comba_tensor *dt_bias = comba_build_head_scalar(build, "dt_bias", H, COMBA_DRAW_DT_BIAS, 0);
  const comba_time_step_attributes limits = {c->dt_limit[0], isinf(c->dt_limit[1]) ? 0 : c->dt_limit[1]};
  comba_tensor *g = NULL, *v = comba_time_step(graph, u, dt, a_log, dt_bias, limits, &g);

  const comba_scalar_decay_attributes attributes = {.scale = 1};
  comba_tensor *y = comba_build_scalar_decay(build, "recurrent", q, k, v, g, attributes);

  const comba_shape heads = c->D_has_hdim ? COMBA_SHAPE(B, T, inner, 1) : COMBA_SHAPE(B, T, H, P);
  comba_tensor *D = comba_build_head_scalar(build, "D", heads.size[2], COMBA_DRAW_CONSTANT, 1);
  y = comba_head_skip(graph, comba_reshape(graph, y, heads), comba_reshape(graph, u, heads), D);
  y = gated_norm(build, c, comba_reshape(graph, y, COMBA_SHAPE(B, T, inner)), z, inner);
  comba_tensor *bias = c->use_bias ? comba_build_vector(build, "out_proj.bias", d, 0) : NULL;
  return comba_linear(graph, y, output_weight(build, c, COMBA_SHAPE(d, inner)), bias);
}

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"head_dim", COMBA_FIELD_INTEGER, FIELD(head_dim), .default_value = 64, .minimum = 1, .maximum = 4096,
     .help = "value size of a head; there are hidden_size * expand / head_dim of them, whatever num_heads says"},
    {"state_size", COMBA_FIELD_INTEGER, FIELD(state_size), .default_value = 128, .minimum = 1, .maximum = 4096,
     .help = "key size of a head"},
    {"expand", COMBA_FIELD_INTEGER, FIELD(expand), .default_value = 2, .minimum = 1, .maximum = 64,
     .help = "value size of all heads = hidden_size * expand"},
    {"n_groups", COMBA_FIELD_INTEGER, FIELD(n_groups), .default_value = 1, .minimum = 1, .maximum = 65536,
     .help = "groups of consecutive heads that share keys and queries, and of channels that are normed together"},
    {"conv_kernel", COMBA_FIELD_INTEGER, FIELD(conv_kernel), .default_value = 4, .minimum = 1, .maximum = 64,
     .help = "taps of the short convolution"},
    {"use_bias", COMBA_FIELD_BOOLEAN, FIELD(use_bias), .default_value = 0, .help = "biases of in_proj and out_proj"},
    {"use_conv_bias", COMBA_FIELD_BOOLEAN, FIELD(use_conv_bias), .default_value = 1,
     .help = "bias of the short convolution"},
    {"D_has_hdim", COMBA_FIELD_BOOLEAN, FIELD(D_has_hdim), .default_value = 0,
     .help = "D for each channel instead of each head"},
    {"dt_limit", COMBA_FIELD_RANGE, FIELD(dt_limit), .default_value = 0, .default_largest = HUGE_VAL, .minimum = 0,
     .maximum = HUGE_VAL, .help = "least and largest time step"},
    {"rmsnorm", COMBA_FIELD_BOOLEAN, FIELD(rmsnorm), .default_value = 1, .help = "false: the output is gated alone"},
    {"norm_before_gate", COMBA_FIELD_BOOLEAN, FIELD(norm_before_gate), .default_value = 0,
     .help = "true: RMSNorm(y) silu(z); false: RMSNorm(y silu(z))"},
    {"rescale_prenorm_residual", COMBA_FIELD_BOOLEAN, FIELD(rescale_prenorm_residual), .default_value = 1,
     .help = "out_proj starts kaiming-uniform(sqrt 5) / sqrt(layers)"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const int64_t inner = c->expand * hidden_size, heads = inner / c->head_dim;
  if (!(c->dt_limit[1] > 0))
    return comba_fail(COMBA_ERROR_ARGUMENT, "dt_limit ends at %g, expected a time step above 0", c->dt_limit[1]);
  if (inner % c->head_dim)
    return comba_fail(COMBA_ERROR_ARGUMENT, "head_dim is %lld, expected a divisor of hidden_size * expand %lld",
                      (long long)c->head_dim, (long long)inner);
  if (heads % c->n_groups)
    return comba_fail(COMBA_ERROR_ARGUMENT, "n_groups is %lld, expected a divisor of the number of heads %lld",
                      (long long)c->n_groups, (long long)heads);
  return COMBA_OK;
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const double state = (double)(c->expand * hidden_size * c->state_size);
  return (comba_mixer_cost){.state_elements = state, .flops_per_token = 5 * state};
}

static const comba_default language_defaults[] = {{"use_mlp", 0}, {NULL, 0}};
static const comba_names names = {"backbone", "mixer", "norm", "norm_f"};

const comba_mixer_row comba_mixer_mamba2 = {
    .model_type = "mamba2",
    .recurrence = "S_t = a_t S_{t-1} + dt_t x_t B_t^T;  y_t = S_t C_t + D x_t",
    .source = "Transformers are SSMs: Generalized Models through Structured State Space Duality, arXiv 2405.21060",
    .fields = fields,
    .language_defaults = language_defaults,
    .names = &names,
    .trains_padding = true,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
