/* mesa_net: least squares at every token (arXiv 2506.05233).
 *
 *   q, k = silu(conv(W x)), divided by their length;  v = W_v x
 *   g = ln sigmoid(W_a x + b_a);  beta = sigmoid(W_b x + b_b);  lambda = softplus(lambda_params) + lambda_lower_bound
 *   H_t = e^{g_t} H_{t-1} + beta_t k_t k_t^T;  G_t = e^{g_t} G_{t-1} + beta_t k_t v_t^T
 *   o_t = G_t^T (H_t + diag(lambda))^{-1} q_t
 *   y = W_o RMSNorm(o), gated by silu(W_g x) if asked */
#include "mixers/delta_heads.h"
#include "mixers/projection.h"
#include "mixers/recurrence.h"

#include <math.h>
#include <stddef.h>

typedef struct config {
  int64_t num_heads, head_dim, conv_size, max_cg_step_training, max_cg_step_decoding;
  double lambda_lower_bound;
  bool use_output_gate;
} config;

/* lambda starts at 1 */
static comba_tensor *build_lambda(comba_build *build, const config *c) {
  const comba_initial initial = {COMBA_DRAW_CONSTANT, log(expm1(1 - c->lambda_lower_bound))};
  comba_tensor *parameter = comba_build_parameter(build, "lambda_params", COMBA_SHAPE(c->num_heads * c->head_dim),
                                                  COMBA_ROLE_VECTOR, initial);
  return comba_reshape(build->graph, parameter, COMBA_SHAPE(c->num_heads, c->head_dim));
}

/* ln sigmoid(a_proj x) */
static comba_tensor *build_log_decay(comba_build *build, comba_tensor *x, int64_t heads) {
  const size_t length = comba_build_enter(build, "a_proj");
  comba_tensor *weight = comba_build_weight(build, "weight", COMBA_SHAPE(heads, x->shape.size[2]));
  comba_tensor *bias = comba_build_vector(build, "bias", heads, 0);
  comba_build_leave(build, length);
  comba_tensor *a = comba_linear(build->graph, x, weight, NULL);
  return comba_decay_gate(build->graph, a, NULL, bias, COMBA_DECAY_SIGMOID);
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, d = x->shape.size[2], H = c->num_heads, K = c->head_dim;
  comba_tensor *q = comba_build_unit_projection(build, "q", x, H, K, c->conv_size, true, COMBA_L2_EPSILON);
  comba_tensor *k = comba_build_unit_projection(build, "k", x, H, K, c->conv_size, true, COMBA_L2_EPSILON);
  comba_tensor *v = comba_build_projection(build, "v", x, H, K, 0, false);
  comba_tensor *g = build_log_decay(build, x, H);
  comba_tensor *beta = comba_sigmoid_gate(graph, comba_build_linear(build, "b_proj", x, H, true), 1);

  const comba_mesa_attributes solver = {.lower_bound = c->lambda_lower_bound,
                                        .steps = build->states ? c->max_cg_step_decoding : c->max_cg_step_training,
                                        .mode = build->mode};
  comba_tensor *before = comba_build_state(build, "h_kk", COMBA_SHAPE(B, H, K, K)), *after = NULL;
  q = comba_mesa(graph, q, k, beta, g, before, build->cu_seqlens, build_lambda(build, c), solver, &after);
  comba_build_update(build, before, after);
  v = comba_token_scale(graph, v, beta, false);
  comba_tensor *o = comba_build_scalar_decay(build, "h_kv", q, k, v, g, (comba_scalar_decay_attributes){.scale = 1});

  comba_tensor *gate = c->use_output_gate ? comba_build_linear(build, "g_proj", x, H * K, false) : NULL;
  return comba_build_head_output(build, "o_norm.weight", o, gate, COMBA_SILU, d);
}

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 16, .minimum = 1, .maximum = 65536,
     .help = "heads"},
    {"head_dim", COMBA_FIELD_INTEGER, FIELD(head_dim), .default_value = 128, .minimum = 1, .maximum = 4096,
     .help = "key and value size of a head"},
    {"use_gate", COMBA_FIELD_BOOLEAN, FIELD(use_output_gate), .default_value = 0,
     .help = "older name of use_output_gate, which wins where a config has both"},
    {"use_output_gate", COMBA_FIELD_BOOLEAN, FIELD(use_output_gate), .default_value = 0,
     .help = "gate the normed output with silu"},
    {"conv_size", COMBA_FIELD_INTEGER, FIELD(conv_size), .default_value = 4, .minimum = 1, .maximum = 64,
     .help = "taps of the short convolution"},
    {"lambda_lower_bound", COMBA_FIELD_NUMBER, FIELD(lambda_lower_bound), .default_value = 0.25, .minimum = 0,
     .maximum = 0.99, .help = "least regularisation of a channel; at first all have 1"},
    {"max_cg_step_training", COMBA_FIELD_INTEGER, FIELD(max_cg_step_training), .default_value = 30, .minimum = 1,
     .maximum = 4096, .help = "most steps of conjugate gradients in a forward or backward pass"},
    {"max_cg_step_decoding", COMBA_FIELD_INTEGER, FIELD(max_cg_step_decoding), .default_value = 30, .minimum = 1,
     .maximum = 4096, .help = "the same in a decoder"},
    {0}};

/* With K steps, in which conjugate gradients are exact but for rounding. */
static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  (void)hidden_size;
  const config *c = opaque;
  const double matrix = (double)(c->num_heads * c->head_dim * c->head_dim);
  const double steps = (double)(c->head_dim < c->max_cg_step_decoding ? c->head_dim : c->max_cg_step_decoding);
  return (comba_mixer_cost){.state_elements = 2 * matrix, .flops_per_token = (8 + 2 * steps) * matrix};
}

const comba_mixer_row comba_mixer_mesa_net = {
    .model_type = "mesa_net",
    .recurrence =
        "H_t = a_t H_{t-1} + B_t k_t k_t^T, G_t = a_t G_{t-1} + B_t v_t k_t^T;  o_t = G_t (H_t + diag(l))^{-1} q_t",
    .source = "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training, arXiv 2506.05233",
    .fields = fields,
    .config_size = sizeof(config),
    .build = build_mixer,
    .cost = cost,
};
