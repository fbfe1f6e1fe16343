#include "mixers/delta_heads.h"

#include "mixers/projection.h"

comba_tensor *comba_build_head_scalar(comba_build *build, const char *name, int64_t heads,
                                      comba_distribution distribution, double value) {
  return comba_build_parameter(build, name, COMBA_SHAPE(heads), COMBA_ROLE_SCALAR,
                               (comba_initial){distribution, value});
}

comba_tensor *comba_build_decay_gate(comba_build *build, comba_tensor *a, comba_decay_kind kind) {
  if (!a) return NULL;
  const int64_t heads = a->shape.size[2];
  comba_tensor *a_log = comba_build_head_scalar(build, "A_log", heads, COMBA_DRAW_A_LOG, 0);
  comba_tensor *dt_bias = comba_build_head_scalar(
      build, "dt_bias", heads, kind == COMBA_DECAY_SIGMOID ? COMBA_DRAW_CONSTANT : COMBA_DRAW_DT_BIAS, 0);
  return comba_decay_gate(build->graph, a, a_log, dt_bias, kind);
}

comba_tensor *comba_build_delta_rule(comba_build *build, comba_tensor *q, comba_tensor *k, comba_tensor *p,
                                     comba_tensor *v, comba_tensor *beta, comba_tensor *g, bool feedback_after_decay) {
  if (!q || !v) return NULL;
  const comba_shape states = COMBA_SHAPE(build->batch, v->shape.size[2], q->shape.size[3], v->shape.size[3]);
  const comba_delta_rule_attributes attributes = {.feedback_after_decay = feedback_after_decay, .mode = build->mode};
  comba_tensor *before = comba_build_state(build, "recurrent", states), *after = NULL;
  comba_tensor *o = comba_delta_rule(build->graph, q, k, p, v, beta, g, before, build->cu_seqlens, attributes, &after);
  comba_build_update(build, before, after);
  return o;
}

int64_t comba_value_heads(const comba_heads *heads) {
  return heads->num_v_heads ? heads->num_v_heads : heads->num_heads;
}

int64_t comba_value_dim(const comba_heads *heads) {
  return (int64_t)((double)heads->head_dim * heads->expand_v);
}

void comba_build_projections(comba_build *build, const comba_heads *heads, comba_tensor *x, bool unit, comba_tensor **q,
                             comba_tensor **k, comba_tensor **v) {
  const int64_t taps = heads->use_short_conv ? heads->conv_size : 0, H = heads->num_heads, K = heads->head_dim;
  *q = unit ? comba_build_unit_projection(build, "q", x, H, K, taps, true, COMBA_L2_EPSILON)
            : comba_build_projection(build, "q", x, H, K, taps, true);
  *k = unit ? comba_build_unit_projection(build, "k", x, H, K, taps, true, COMBA_L2_EPSILON)
            : comba_build_projection(build, "k", x, H, K, taps, true);
  *v = comba_build_projection(build, "v", x, comba_value_heads(heads), comba_value_dim(heads), taps, true);
}

comba_status comba_heads_check(const void *config, int64_t hidden_size) {
  (void)hidden_size;
  const comba_heads *heads = config;
  const double size = (double)heads->head_dim * heads->expand_v;
  if (comba_value_dim(heads) < 1 || size != (double)comba_value_dim(heads))
    return comba_fail(COMBA_ERROR_ARGUMENT, "head_dim * expand_v is %g, expected a positive whole number", size);
  if (comba_value_heads(heads) % heads->num_heads)
    return comba_fail(COMBA_ERROR_ARGUMENT, "num_v_heads is %lld, expected a multiple of num_heads %lld",
                      (long long)comba_value_heads(heads), (long long)heads->num_heads);
  return COMBA_OK;
}

comba_mixer_cost comba_heads_cost(const void *config, int64_t hidden_size) {
  (void)hidden_size;
  const comba_heads *heads = config;
  return comba_delta_rule_cost((double)(comba_value_heads(heads) * heads->head_dim * comba_value_dim(heads)));
}

comba_mixer_cost comba_delta_rule_cost(double elements) {
  return (comba_mixer_cost){.state_elements = elements, .flops_per_token = 7 * elements};
}
