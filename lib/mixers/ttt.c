#include "mixers/ttt.h"

#include <stddef.h>

#include "mixers/projection.h"

/* Of the inner norm and of post_norm; the released layer fixes both */
static const double NORM_EPSILON = 1e-6;

#define FIELD(member) offsetof(comba_ttt, member)
const comba_field comba_ttt_fields[] = {
    {"num_heads", COMBA_FIELD_INTEGER, FIELD(num_heads), .default_value = 32, .minimum = 1, .maximum = 65536,
     .help = "heads, a divisor of hidden_size"},
    {"mini_batch_size", COMBA_FIELD_INTEGER, FIELD(mini_batch_size), .default_value = 16, .minimum = 1, .maximum = 64,
     .help = "tokens whose gradients are taken at one memory"},
    {"ttt_base_lr", COMBA_FIELD_NUMBER, FIELD(ttt_base_lr), .default_value = 1, .minimum = 1e-9, .maximum = 1e3,
     .help = "the learned rates lie between 0 and this over the head size"},
    {"rope_theta", COMBA_FIELD_NUMBER, FIELD(rope_theta), .default_value = 10000, .minimum = 1, .maximum = 1e12,
     .help = "base of the rotary embedding by the position in the mini-batch"},
    {"use_gate", COMBA_FIELD_BOOLEAN, FIELD(use_gate), .default_value = 0,
     .help = "gate the normed output with gelu (tanh form)"},
    {"share_qk", COMBA_FIELD_BOOLEAN, FIELD(share_qk), .default_value = 0,
     .help = "q and k are two convolutions of one projection"},
    {"conv_size", COMBA_FIELD_INTEGER, FIELD(conv_size), .default_value = 4, .minimum = 1, .maximum = 64,
     .help = "taps of the convolutions of share_qk and pre_conv"},
    {"pre_conv", COMBA_FIELD_BOOLEAN, FIELD(pre_conv), .default_value = 0,
     .help = "each block begins with x += conv(RMSNorm(x)), a causal depthwise convolution"},
    {0}};

comba_status comba_ttt_check(const void *opaque, int64_t hidden_size) {
  const comba_ttt *c = opaque;
  if (hidden_size % c->num_heads || hidden_size / c->num_heads % 2)
    return comba_fail(COMBA_ERROR_ARGUMENT,
                      "num_heads is %lld, expected a divisor of hidden_size %lld with heads of even size",
                      (long long)c->num_heads, (long long)hidden_size);
  return COMBA_OK;
}

/* Heads of x, turned by the position in the mini-batch */
static comba_tensor *turn(comba_build *build, const comba_ttt *c, comba_tensor *x, comba_shape heads) {
  x = comba_reshape(build->graph, x, heads);
  return comba_rotary_interleaved(build->graph, x, build->position, build->cu_seqlens, c->rope_theta,
                                  c->mini_batch_size);
}

/* sigmoid(theta_h x_t + b_h) base_lr / F: theta is stored as one linear map a head */
static comba_tensor *learned_rate(comba_build *build, const comba_ttt *c, comba_tensor *x) {
  comba_graph *graph = build->graph;
  const int64_t d = x->shape.size[2], H = c->num_heads;
  comba_tensor *weight = comba_build_parameter(build, "learnable_ttt_lr_weight", COMBA_SHAPE(H, 1, d),
                                               COMBA_ROLE_MATRIX, (comba_initial){COMBA_DRAW_NORMAL, 0.02});
  comba_tensor *bias = comba_build_parameter(build, "learnable_ttt_lr_bias", COMBA_SHAPE(H, 1), COMBA_ROLE_SCALAR,
                                             (comba_initial){COMBA_DRAW_CONSTANT, 0});
  x = comba_linear(graph, x, comba_reshape(graph, weight, COMBA_SHAPE(H, d)),
                   comba_reshape(graph, bias, COMBA_SHAPE(H)));
  return comba_sigmoid_gate(graph, x, c->ttt_base_lr / (double)(d / H));
}

int64_t comba_ttt_front_taps(const void *opaque) {
  const comba_ttt *c = opaque;
  return c->pre_conv ? c->conv_size : 0;
}

comba_ttt_operands comba_build_ttt(comba_build *build, const comba_ttt *c, comba_tensor *x) {
  const int64_t d = x->shape.size[2], H = c->num_heads, F = d / H;
  const comba_shape heads = COMBA_SHAPE(build->batch, build->length, H, F);
  comba_tensor *q = comba_build_linear(build, "q_proj", x, d, false), *k;
  if (c->share_qk) {
    k = comba_build_convolution(build, "conv_k", q, c->conv_size, false, true);
    q = comba_build_convolution(build, "conv_q", q, c->conv_size, false, true);
  } else {
    k = comba_build_linear(build, "k_proj", x, d, false);
  }
  return (comba_ttt_operands){
      .q = turn(build, c, q, heads),
      .k = turn(build, c, k, heads),
      .v = comba_reshape(build->graph, comba_build_linear(build, "v_proj", x, d, false), heads),
      .rate = learned_rate(build, c, x),
      .token_offset = comba_build_vector(build, "learnable_token_idx", c->mini_batch_size, 0),
      .norm_weight = comba_build_parameter(build, "ttt_norm_weight", COMBA_SHAPE(H, F), COMBA_ROLE_VECTOR,
                                           (comba_initial){COMBA_DRAW_CONSTANT, 1}),
      .norm_bias = comba_build_parameter(build, "ttt_norm_bias", COMBA_SHAPE(H, F), COMBA_ROLE_VECTOR,
                                         (comba_initial){COMBA_DRAW_CONSTANT, 0}),
  };
}

comba_tensor *comba_build_ttt_output(comba_build *build, const comba_ttt *c, comba_tensor *x,
                                     const comba_ttt_operands *operands, comba_tensor *o) {
  comba_graph *graph = build->graph;
  const int64_t d = x->shape.size[2];
  o = comba_layer_norm(graph, o, operands->norm_weight, operands->norm_bias, NORM_EPSILON);
  o = comba_reshape(graph, comba_add(graph, o, operands->q), x->shape);
  const size_t length = comba_build_enter(build, "post_norm");
  comba_tensor *weight = comba_build_vector(build, "weight", d, 1), *bias = comba_build_vector(build, "bias", d, 0);
  comba_build_leave(build, length);
  o = comba_layer_norm(graph, o, weight, bias, NORM_EPSILON);
  if (c->use_gate) {
    comba_tensor *gate = comba_build_linear(build, "g_proj", x, d, false);
    o = comba_product(graph, o, comba_activation(graph, gate, COMBA_GELU_TANH, 1));
  }
  return comba_linear(graph, o, comba_build_residual_weight(build, "o_proj.weight", COMBA_SHAPE(d, d)), NULL);
}
