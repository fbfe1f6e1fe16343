/* The memory of two layers: M(x) = x + LN(f(x)), f(x) = gelu(x W1 + b1) W2 + b2, LN with a weight and a bias a head. */
#include "mixers/miras.h"

static const double NORM_EPSILON = 1e-6;

const char *const comba_miras_memories[] = {"matrix", "mlp", NULL};

static int64_t hidden_layer(const comba_miras *m) {
  return m->heads.head_dim * m->expand;
}

/* Numbers of a head's two layers */
static int64_t layers_size(int64_t F, int64_t M) {
  return 2 * F * M + M + F;
}

double comba_miras_entries(const comba_miras *m) {
  const int64_t columns = m->memory == COMBA_MIRAS_MLP ? hidden_layer(m) : comba_memory_value_dim(&m->heads);
  return (double)(m->heads.head_dim * columns);
}

comba_status comba_miras_check(const void *opaque, int64_t hidden_size) {
  const comba_miras *m = opaque;
  const comba_status status = comba_memory_heads_check(&m->heads, hidden_size);
  if (status != COMBA_OK || m->memory != COMBA_MIRAS_MLP) return status;
  if (m->heads.expand_v != 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "expand_v is %g, expected 1 with memory 'mlp', which adds to its key",
                      m->heads.expand_v);
  if (!m->heads.learn_memory)
    return comba_fail(COMBA_ERROR_ARGUMENT,
                      "learn_memory is false, expected true with memory 'mlp': layers of zeros have no gradient");
  return COMBA_OK;
}

comba_mixer_cost comba_miras_cost(const void *opaque, int64_t hidden_size) {
  const comba_miras *m = opaque;
  if (m->memory != COMBA_MIRAS_MLP) return comba_memory_heads_cost(&m->heads, hidden_size);
  const int64_t H = m->heads.num_heads, F = m->heads.head_dim, M = hidden_layer(m);
  return (comba_mixer_cost){.state_elements = (double)(H * (2 * layers_size(F, M) + 1)),
                            .flops_per_token = 14 * (double)(H * F * M)};
}

comba_memory_operands comba_build_miras(comba_build *build, const comba_miras *m, comba_tensor *x, double slope,
                                        double deviation) {
  comba_memory_heads heads = m->heads;
  if (m->memory == COMBA_MIRAS_MLP) heads.learn_memory = false; /* no matrix */
  return comba_build_memory_heads(build, &heads, x, slope, 1, deviation);
}

static comba_tensor *matrices(comba_build *build, const char *name, comba_shape shape, double deviation) {
  return comba_build_parameter(build, name, shape, COMBA_ROLE_MATRIX, (comba_initial){COMBA_DRAW_NORMAL, deviation});
}

static comba_tensor *vectors(comba_build *build, const char *name, int64_t heads, int64_t size, double value) {
  return comba_build_parameter(build, name, COMBA_SHAPE(heads, size), COMBA_ROLE_VECTOR,
                               (comba_initial){COMBA_DRAW_CONSTANT, value});
}

/* q + LN(f(q)) (B,T,H,F); the state "memory" of a decoder is updated. */
static comba_tensor *read_layers(comba_build *build, const comba_miras *m, const comba_memory_operands *a,
                                 const comba_memory_attributes *attributes, double deviation) {
  const int64_t H = m->heads.num_heads, F = m->heads.head_dim, M = hidden_layer(m);
  comba_tensor *before = comba_build_state(build, "memory", COMBA_SHAPE(build->batch, H, 2 * layers_size(F, M) + 1));
  comba_tensor *after = NULL;
  const comba_memory_mlp_operands operands = {
      .q = a->q,
      .k = a->k,
      .v = a->v,
      .rate = a->rate,
      .retention = a->retention,
      .threshold = a->threshold,
      .norm_weight = vectors(build, "memory_norm_weight", H, F, 1),
      .norm_bias = vectors(build, "memory_norm_bias", H, F, 0),
      .w1 = matrices(build, "memory_w1", COMBA_SHAPE(H, F, M), deviation),
      .b1 = vectors(build, "memory_b1", H, M, 0),
      .w2 = matrices(build, "memory_w2", COMBA_SHAPE(H, M, F), deviation),
      .b2 = vectors(build, "memory_b2", H, F, 0),
      .initial_state = before,
      .position = build->position,
      .cu_seqlens = build->cu_seqlens,
  };
  comba_memory_mlp_attributes own = {.chunk = m->heads.chunk_size,
                                     .loss = attributes->loss,
                                     .normalize = m->norm_in_loss,
                                     .map = attributes->map,
                                     .map_exponent = attributes->map_exponent,
                                     .map_total = attributes->map_total,
                                     .mode = build->mode};
  own.loss.epsilon = NORM_EPSILON;
  comba_tensor *o = comba_memory_mlp(build->graph, &operands, own, &after);
  comba_build_update(build, before, after);
  o = comba_layer_norm(build->graph, o, operands.norm_weight, operands.norm_bias, NORM_EPSILON);
  return comba_add(build->graph, o, a->q);
}

comba_tensor *comba_build_miras_output(comba_build *build, const comba_miras *m, comba_tensor *x,
                                       comba_memory_operands operands, comba_memory_attributes attributes,
                                       double deviation) {
  if (m->memory != COMBA_MIRAS_MLP) return comba_build_memory_output(build, &m->heads, x, operands, attributes);
  return comba_build_memory_gated(build, &m->heads, x, read_layers(build, m, &operands, &attributes, deviation));
}
