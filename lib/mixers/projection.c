#include "mixers/projection.h"

#include <stdio.h>

static comba_tensor *build_convolution(comba_build *build, const char *name, comba_tensor *x, int64_t taps,
                                       comba_short_convolution_attributes attributes, bool bias) {
  if (!x) return NULL;
  const int64_t channels = x->shape.size[2];
  const size_t length = comba_build_enter(build, "%s", name);
  comba_tensor *weight = comba_build_parameter(build, "weight", COMBA_SHAPE(channels, 1, taps), COMBA_ROLE_CONVOLUTION,
                                               build->convolution_initial);
  comba_tensor *offset = bias ? comba_build_vector(build, "bias", channels, 0) : NULL;
  comba_build_leave(build, length);
  const comba_shape states = COMBA_SHAPE(build->batch, taps - 1, channels);
  comba_tensor *before = taps > 1 ? comba_build_state(build, name, states) : NULL, *after = NULL;
  x = comba_short_convolution(build->graph, x, weight, offset, before, build->cu_seqlens, attributes, &after);
  comba_build_update(build, before, after);
  return x;
}

comba_tensor *comba_build_convolution(comba_build *build, const char *name, comba_tensor *x, int64_t taps, bool silu,
                                      bool bias) {
  return build_convolution(build, name, x, taps, (comba_short_convolution_attributes){.silu = silu}, bias);
}

/* `attributes` of the convolution, whose silu is there without one too */
static comba_tensor *build_projection(comba_build *build, const char *name, comba_tensor *x, int64_t heads,
                                      int64_t size, int64_t taps, comba_short_convolution_attributes attributes) {
  comba_graph *graph = build->graph;
  char linear[32], convolution[32];
  snprintf(linear, sizeof linear, "%s_proj", name);
  snprintf(convolution, sizeof convolution, "%s_conv1d", name);
  comba_tensor *y = comba_build_linear(build, linear, x, heads * size, false);
  if (taps) {
    y = build_convolution(build, convolution, y, taps, attributes, false);
  } else if (attributes.silu) {
    y = comba_activation(graph, y, COMBA_SILU, 1);
  }
  return comba_reshape(graph, y, COMBA_SHAPE(build->batch, build->length, heads, size));
}

comba_tensor *comba_build_projection(comba_build *build, const char *name, comba_tensor *x, int64_t heads, int64_t size,
                                     int64_t taps, bool silu) {
  return build_projection(build, name, x, heads, size, taps, (comba_short_convolution_attributes){.silu = silu});
}

/* The convolution divides as it writes. A single token's is a step of a larger launch (docs/cuda.md, "Decoding"), which takes channel by
 * channel: there the division is a step of its own. */
comba_tensor *comba_build_unit_projection(comba_build *build, const char *name, comba_tensor *x, int64_t heads,
                                          int64_t size, int64_t taps, bool silu, double epsilon) {
  if (!taps || build->length == 1)
    return comba_l2_norm(build->graph, comba_build_projection(build, name, x, heads, size, taps, silu), epsilon);
  return build_projection(build, name, x, heads, size, taps, (comba_short_convolution_attributes){silu, size, epsilon});
}

comba_tensor *comba_build_low_rank(comba_build *build, const char *name, comba_tensor *x, int64_t rank, int64_t outputs,
                                   bool bias) {
  const size_t length = comba_build_enter(build, "%s", name);
  comba_tensor *y = comba_build_linear(build, "1", comba_build_linear(build, "0", x, rank, false), outputs, bias);
  comba_build_leave(build, length);
  return y;
}

comba_tensor *comba_build_head_output(comba_build *build, const char *name, comba_tensor *o, comba_tensor *gate,
                                      comba_function function, int64_t d) {
  if (!o) return NULL;
  const int64_t B = build->batch, T = build->length, H = o->shape.size[2], V = o->shape.size[3];
  comba_tensor *weight = name ? comba_build_vector(build, name, V, 1) : NULL;
  if (gate) gate = comba_reshape(build->graph, gate, COMBA_SHAPE(B, T, H, V));
  if (gate && weight) {
    o = comba_gated_rms_norm(build->graph, o, gate, weight, build->norm_eps, function);
  } else {
    o = comba_rms_norm(build->graph, o, NULL, weight, build->norm_eps, NULL);
    if (gate) o = comba_swiglu(build->graph, gate, o);
  }
  o = comba_reshape(build->graph, o, COMBA_SHAPE(B, T, H * V));
  return comba_linear(build->graph, o, comba_build_residual_weight(build, "o_proj.weight", COMBA_SHAPE(d, H * V)),
                      NULL);
}

int64_t comba_expanded_head_size(int64_t hidden_size, double expand, int64_t heads) {
  const int64_t channels = (int64_t)((double)hidden_size * expand);
  return channels % heads ? 0 : channels / heads;
}

comba_status comba_check_expansion(const char *field, int64_t hidden_size, double expand, int64_t heads) {
  if (comba_expanded_head_size(hidden_size, expand, heads)) return COMBA_OK;
  return comba_fail(COMBA_ERROR_ARGUMENT, "hidden_size * %s is %g, expected a positive multiple of num_heads %lld",
                    field, (double)hidden_size * expand, (long long)heads);
}
