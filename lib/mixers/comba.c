/* comba: the bilinear RNN with closed-loop control (arXiv 2506.02475).
 *
 *   q, k, v = silu(conv(W x));  beta = beta_scale sigmoid(W_b x);  g = ln alpha from W_a x (decay_gate)
 *   p = sigmoid(decay) k;  q = q - D p;  q, k, p normalised to length 1 (as released)
 *   S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - S_{t-1}^T p_t)^T,  o_t = K^(-1/2) S_t^T q_t        (Eq. 5, splr)
 *   y = W_o (RMSNorm(o) * sigmoid(W_g x))
 *
 * As released, p is normalised, so that sigmoid(decay) cancels in the feedback and acts through D alone. The paper's Eq. 5
 * has it act on the feedback: p_normalize = false. correction_after_norm = true applies q - D p to normalised vectors. */
#include <stddef.h>

#include "mixers/delta_heads.h"
#include "mixers/projection.h"

enum { SPLR, IPLR };
enum { GATE_SIGMOID, GATE_SWISH };

typedef struct config {
  comba_heads heads; /* first: shared functions take a pointer to it */
  double correction_factor, beta_scale;
  bool use_output_gate, use_output_correction, use_inner_decay;
  bool p_normalize, correction_after_norm, honor_ablation_fields, use_feedback_decay;
  int transition, output_gate, decay_gate;
} config;

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t H = c->heads.num_heads, HV = comba_value_heads(&c->heads);
  /* fla's block does not pass these three to the layer, which then runs with true, true, 1 */
  const bool correct = !c->honor_ablation_fields || c->use_output_correction;
  const bool inner_decay = !c->honor_ablation_fields || c->use_inner_decay;
  const double initial_d = c->honor_ablation_fields ? c->correction_factor : 1;

  comba_tensor *q, *k, *v;
  comba_build_projections(build, &c->heads, x, false, &q, &k, &v);
  comba_tensor *a = comba_build_linear(build, "a_proj", x, HV, false);
  comba_tensor *b = comba_build_linear(build, "b_proj", x, HV, false);
  comba_tensor *beta = comba_sigmoid_gate(graph, b, c->beta_scale);
  comba_tensor *g = comba_build_decay_gate(build, a, (comba_decay_kind)c->decay_gate);
  comba_tensor *decay = inner_decay ? comba_build_head_scalar(build, "decay", H, COMBA_DRAW_CONSTANT, 1) : NULL;
  comba_tensor *D = correct ? comba_build_head_scalar(build, "D", H, COMBA_DRAW_CONSTANT, initial_d) : NULL;

  const comba_closed_loop_attributes loop = {COMBA_L2_EPSILON, c->correction_after_norm, c->p_normalize,
                                             c->use_feedback_decay};
  comba_tensor *more[COMBA_MAX_OUTPUTS - 1] = {NULL};
  q = comba_closed_loop(graph, q, k, decay, D, loop, more);
  comba_tensor *o = comba_build_delta_rule(build, q, more[0], more[1], v, beta, g, c->transition == IPLR);
  comba_tensor *gate =
      c->use_output_gate ? comba_build_linear(build, "g_proj", x, HV * comba_value_dim(&c->heads), false) : NULL;
  return comba_build_head_output(build, "o_norm.weight", o, gate,
                                 c->output_gate == GATE_SWISH ? COMBA_SILU : COMBA_SIGMOID, x->shape.size[2]);
}

static const char *const transitions[] = {"splr", "iplr", NULL};
static const char *const output_gates[] = {"sigmoid", "swish", NULL};
static const char *const decay_gates[] = {"mamba2", "sigmoid", "constant", "one", NULL}; /* order of comba_decay_kind */

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"use_output_gate", COMBA_FIELD_BOOLEAN, FIELD(use_output_gate), .default_value = 1,
     .help = "gate the normed output"},
    {"use_output_correction", COMBA_FIELD_BOOLEAN, FIELD(use_output_correction), .default_value = 1,
     .help = "q - D p; see honor_ablation_fields"},
    {"use_inner_decay", COMBA_FIELD_BOOLEAN, FIELD(use_inner_decay), .default_value = 1,
     .help = "p = sigmoid(decay) k instead of p = k; see honor_ablation_fields"},
    {"correction_factor", COMBA_FIELD_NUMBER, FIELD(correction_factor), .default_value = 1, .minimum = -1e6,
     .maximum = 1e6, .help = "initial D (the paper: 0.02 at 340M, 1 at 1.3B); see honor_ablation_fields"},
    {"honor_ablation_fields", COMBA_FIELD_BOOLEAN, FIELD(honor_ablation_fields), .default_value = 0,
     .help = "false: the three fields above are ignored, as fla's block does (true, true, 1); true: as written"},
    {"p_normalize", COMBA_FIELD_BOOLEAN, FIELD(p_normalize), .default_value = 1,
     .help = "true: p is normalised, decay cancels in the feedback (fla); false: p = sigmoid(decay) k (paper, Eq. 5)"},
    {"correction_after_norm", COMBA_FIELD_BOOLEAN, FIELD(correction_after_norm), .default_value = 0,
     .help = "false: q = norm(q - D p) (fla); true: q = norm(q) - D p with k normalised (paper)"},
    {"use_feedback_decay", COMBA_FIELD_BOOLEAN, FIELD(use_feedback_decay), .default_value = 1,
     .help = "false: the feedback reads k, only the correction keeps sigmoid(decay) (the paper's 'without b')"},
    {"transition", COMBA_FIELD_CHOICE, FIELD(transition), .default_value = SPLR, .choices = transitions,
     .help = "splr: feedback reads the state before its decay; iplr: after it"},
    {"beta_scale", COMBA_FIELD_NUMBER, FIELD(beta_scale), .default_value = 1, .minimum = 0, .maximum = 2,
     .help = "beta = beta_scale * sigmoid(b); the released iplr has 2"},
    {"output_gate", COMBA_FIELD_CHOICE, FIELD(output_gate), .default_value = GATE_SIGMOID, .choices = output_gates,
     .help = "sigmoid (Comba) or swish (Gated DeltaNet)"},
    {"decay_gate", COMBA_FIELD_CHOICE, FIELD(decay_gate), .default_value = COMBA_DECAY_MAMBA2, .choices = decay_gates,
     .help = "alpha: mamba2 = exp(-exp(A_log) softplus(a + dt_bias)), sigmoid(a + dt_bias), constant (no a), or one"},
    COMBA_HEADS_FIELDS(config, heads),
    {0}};

const comba_mixer_row comba_mixer_comba = {
    .model_type = "comba",
    .recurrence = "S_t = S_{t-1} (a_t - b B_t k_t k_t^T) + B_t v_t k_t^T;  o_t = S_t (q_t - d k_t)",
    .source = "Improving Bilinear RNNs with Closed-loop Control, arXiv 2506.02475",
    .fields = fields,
    .config_size = sizeof(config),
    .check = comba_heads_check,
    .build = build_mixer,
    .cost = comba_heads_cost,
};
