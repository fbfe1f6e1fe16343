/* mlstm: xLSTM's matrix memory (arXiv 2405.04517), as the layer of xLSTM 7B has it.
 *
 *   q, k, v, z = W x;  i = cap(W_i x + b_i);  f = ln sigmoid(cap(W_f x + b_f)), or cap(W_f x + b_f);  cap(u) = c tanh(u / c)
 *   C_t = e^{f_t} C_{t-1} + e^{i_t} k_t v_t^T,  n_t = e^{f_t} n_{t-1} + e^{i_t} k_t
 *   h_t = C_t^T q_t / max(|n_t q_t|, sqrt(K))
 *   y = W_o (sigmoid(z) * LayerNorm(h) w), LayerNorm per head
 *
 * C and n are kept times e^{-m_t}, m_t the largest exponent that they hold (exponential_gate), and as one state: n is what C
 * would be for a value that is always 1. The lower bound becomes e^{-m_t}. */
#include "mixers/mixer.h"
#include "mixers/projection.h"
#include "mixers/recurrence.h"

#include <stddef.h>

enum { FORGET_SIGMOID, FORGET_EXPONENTIAL };

typedef struct config {
  int64_t num_heads;
  double qk_dim_factor, v_dim_factor, gate_soft_cap, eps;
  int forget_gate;
} config;

/* (B,T,H) = NAME.weight x + NAME.bias: weights from 0, so that at first a gate is its bias */
static comba_tensor *build_gate(comba_build *build, const char *name, comba_tensor *x, int64_t heads,
                                comba_initial bias) {
  const size_t length = comba_build_enter(build, "%s", name);
  comba_tensor *weight = comba_build_parameter(build, "weight", COMBA_SHAPE(heads, x->shape.size[2]), COMBA_ROLE_MATRIX,
                                               (comba_initial){COMBA_DRAW_CONSTANT, 0});
  comba_tensor *offset = comba_build_parameter(build, "bias", COMBA_SHAPE(heads), COMBA_ROLE_VECTOR, bias);
  comba_build_leave(build, length);
  return comba_linear(build->graph, x, weight, offset);
}

/* h (B,T,H,V) from q, k (B,T,H,K), v (B,T,H,V) and the gates before their cap (B,T,H) */
static comba_tensor *build_memory(comba_build *build, const config *c, comba_tensor *q, comba_tensor *k,
                                  comba_tensor *v, comba_tensor *input_gate, comba_tensor *forget_gate) {
  if (!q || !v) return NULL;
  comba_graph *graph = build->graph;
  comba_tensor *exponent = comba_build_state(build, "exponent", COMBA_SHAPE(build->batch, v->shape.size[2]));
  comba_tensor *scale = NULL, *m = NULL;
  const comba_exponential_gate_attributes gates = {c->gate_soft_cap, c->forget_gate == FORGET_EXPONENTIAL};
  comba_tensor *g =
      comba_exponential_gate(graph, input_gate, forget_gate, exponent, build->cu_seqlens, gates, &scale, &m);
  comba_tensor *values = comba_token_scale(graph, v, scale, true);
  comba_tensor *read =
      comba_build_scalar_decay(build, "recurrent", q, k, values, g, (comba_scalar_decay_attributes){0});
  if (exponent) comba_build_update(build, exponent, comba_last_token(graph, m));
  return comba_normalized_read(graph, read, m, c->eps);
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, T = build->length, d = x->shape.size[2], H = c->num_heads;
  const int64_t K = comba_expanded_head_size(d, c->qk_dim_factor, H),
                V = comba_expanded_head_size(d, c->v_dim_factor, H);
  comba_tensor *q = comba_build_linear(build, "q", x, H * K, false);
  comba_tensor *k = comba_build_linear(build, "k", x, H * K, false);
  comba_tensor *v = comba_build_linear(build, "v", x, H * V, false);
  comba_tensor *z = comba_build_linear(build, "ogate_preact", x, H * V, false);
  comba_tensor *i = build_gate(build, "igate_preact", x, H, (comba_initial){COMBA_DRAW_NORMAL, 0.1});
  /* an exponential forget gate keeps everything at 0, a sigmoid far above it */
  const bool exponential = c->forget_gate == FORGET_EXPONENTIAL;
  const comba_initial forget_bias = {exponential ? COMBA_DRAW_CONSTANT : COMBA_DRAW_FORGET_BIAS, 0};
  comba_tensor *f = build_gate(build, "fgate_preact", x, H, forget_bias);

  comba_tensor *weight = comba_build_vector(build, "multihead_norm.weight", H * V, 1);
  comba_tensor *h = build_memory(build, c, comba_reshape(graph, q, COMBA_SHAPE(B, T, H, K)),
                                 comba_reshape(graph, k, COMBA_SHAPE(B, T, H, K)),
                                 comba_reshape(graph, v, COMBA_SHAPE(B, T, H, V)), i, f);
  h = comba_layer_norm(graph, h, comba_reshape(graph, weight, COMBA_SHAPE(H, V)), NULL, build->norm_eps);
  z = comba_activation(graph, z, COMBA_SIGMOID, 1);
  comba_tensor *y = comba_product(graph, comba_reshape(graph, h, COMBA_SHAPE(B, T, H * V)), z);
  return comba_linear(graph, y, comba_build_residual_weight(build, "out_proj.weight", COMBA_SHAPE(d, H * V)), NULL);
}

static const char *const forget_gates[] = {"sigmoid", "exponential", NULL};

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 4, .minimum = 1, .maximum = 65536,
     .help = "heads"},
    {"qk_dim_factor", COMBA_FIELD_NUMBER, FIELD(qk_dim_factor), .default_value = 0.5, .minimum = 1.0 / 4096,
     .maximum = 64, .help = "query and key size of all heads = hidden_size * qk_dim_factor"},
    {"v_dim_factor", COMBA_FIELD_NUMBER, FIELD(v_dim_factor), .default_value = 1, .minimum = 1.0 / 4096, .maximum = 64,
     .help = "value size of all heads = hidden_size * v_dim_factor"},
    {"gate_soft_cap", COMBA_FIELD_NUMBER, FIELD(gate_soft_cap), .default_value = 15, .minimum = 1e-3, .maximum = 80,
     .nullable = true, .null_value = 0,
     .help = "c of cap(u) = c tanh(u / c), which the gates go through before their function; null: none"},
    {"forget_gate", COMBA_FIELD_CHOICE, FIELD(forget_gate), .default_value = FORGET_SIGMOID, .choices = forget_gates,
     .help = "function of the forget gate"},
    {"eps", COMBA_FIELD_NUMBER, FIELD(eps), .default_value = 1e-6, .minimum = 1e-12, .maximum = 1,
     .help = "added to the normaliser"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const comba_status status = comba_check_expansion("qk_dim_factor", hidden_size, c->qk_dim_factor, c->num_heads);
  return status != COMBA_OK ? status
                            : comba_check_expansion("v_dim_factor", hidden_size, c->v_dim_factor, c->num_heads);
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const int64_t K = comba_expanded_head_size(hidden_size, c->qk_dim_factor, c->num_heads);
  const int64_t V = comba_expanded_head_size(hidden_size, c->v_dim_factor, c->num_heads);
  const double memory = (double)(c->num_heads * K * (V + 1)), heads = (double)c->num_heads;
  return (comba_mixer_cost){.state_elements = memory + heads, .flops_per_token = 5 * memory};
}

const comba_mixer_row comba_mixer_mlstm = {
    .model_type = "mlstm",
    .recurrence = "C_t = f_t C_{t-1} + i_t v_t k_t^T, n_t = f_t n_{t-1} + i_t k_t;  h_t = C_t q_t / max(|n_t q_t|, 1)",
    .source = "xLSTM: Extended Long Short-Term Memory, arXiv 2405.04517",
    .fields = fields,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
