/* g (B,T,H) = max(-100, ungated g) with u = a + dt_bias_h, or u = dt_bias_h where the decay is constant
 *
 *   mamba2, constant  g = -e^A_log_h softplus(u)    du = -e^A_log_h sigmoid(u) dg,  dA_log_h += g dg
 *   sigmoid           g = ln sigmoid(u)             du = sigmoid(-u) dg
 *   one               g = 0                         no gradient
 *
 * da = du (0 if constant);  ddt_bias_h += du; both sums run over B and T. No gradient where g is clamped. */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { A, A_LOG, DT_BIAS };
enum { FLOOR = -100 };

/* Which inputs the formula names. */
static bool reads_a_log(comba_decay_kind kind) {
  return kind == COMBA_DECAY_MAMBA2 || kind == COMBA_DECAY_CONSTANT;
}
static bool reads_bias(comba_decay_kind kind) {
  return kind != COMBA_DECAY_ONE;
}
static bool reads_a(comba_decay_kind kind) {
  return kind == COMBA_DECAY_MAMBA2 || kind == COMBA_DECAY_SIGMOID;
}

static comba_status infer(comba_signature *s) {
  const comba_decay_kind kind = ((const comba_decay_gate_attributes *)s->attributes)->kind;
  const comba_shape *a = &s->input[A], *a_log = &s->input[A_LOG], *dt_bias = &s->input[DT_BIAS];
  if ((unsigned)kind > COMBA_DECAY_ONE)
    return comba_fail(COMBA_ERROR_ARGUMENT, "decay_gate: kind is %d, expected 0 to %d", (int)kind, COMBA_DECAY_ONE);
  if (!comba_extent_fits(a, 3)) return comba_fail_shape(s, A, "(B, T, H)");
  const int64_t tokens = a->size[0] * a->size[1], heads = a->size[2];
  if ((reads_a_log(kind) || a_log->rank) && (a_log->rank != 1 || a_log->size[0] != heads))
    return comba_fail_shape(s, A_LOG, "(H)");
  if ((reads_bias(kind) || dt_bias->rank) && (dt_bias->rank != 1 || dt_bias->size[0] != heads))
    return comba_fail_shape(s, DT_BIAS, "(H)");
  s->outputs = 1;
  s->output[0] = *a;
  s->forward_workspace = heads;
  s->backward_workspace = (1 + 3 * comba_row_blocks(tokens, heads)) * heads;
  return COMBA_OK;
}

/* rate (H) = -e^A_log */
static void rates(const real *a_log, int64_t heads, real *rate) {
  for (int64_t h = 0; h < heads; h++) rate[h] = -comba_exp(a_log[h]);
}

/* A NaN passes, so that it shows. */
static inline real clamped(real g) {
  return g < FLOOR ? FLOOR : g;
}

static void forward(const comba_call *call) {
  const comba_decay_kind kind = ((const comba_decay_gate_attributes *)call->attributes)->kind;
  const int64_t tokens = comba_rows(&call->input[A].shape), heads = comba_last(&call->input[A].shape);
  const real *bias = call->input[DT_BIAS].data;
  real *rate = call->workspace; /* (H) */
  if (reads_a_log(kind)) rates(call->input[A_LOG].data, heads, rate);
#pragma omp parallel for if (tokens * heads > COMBA_SERIAL / 4)
  for (int64_t token = 0; token < tokens; token++) {
    const real *a = (const real *)call->input[A].data + token * heads;
    real *g = (real *)call->output[0].data + token * heads;
    switch (kind) {
    case COMBA_DECAY_MAMBA2:
      for (int64_t h = 0; h < heads; h++) g[h] = clamped(rate[h] * comba_softplus(a[h] + bias[h]));
      break;
    case COMBA_DECAY_SIGMOID:
      for (int64_t h = 0; h < heads; h++) g[h] = clamped(-comba_softplus(-a[h] - bias[h]));
      break;
    case COMBA_DECAY_CONSTANT:
      for (int64_t h = 0; h < heads; h++) g[h] = clamped(rate[h] * comba_softplus(bias[h]));
      break;
    case COMBA_DECAY_ONE: memset(g, 0, (size_t)heads * sizeof(real)); break;
    }
  }
}

/* du (H) of one token, from dg where g is not clamped */
static void token_gradient(comba_decay_kind kind, const real *rate, const real *a, const real *bias, const real *dg,
                           int64_t heads, real *restrict du) {
  switch (kind) {
  case COMBA_DECAY_MAMBA2:
    for (int64_t h = 0; h < heads; h++) du[h] = dg[h] * rate[h] * comba_sigmoid(a[h] + bias[h]);
    break;
  case COMBA_DECAY_SIGMOID:
    for (int64_t h = 0; h < heads; h++) du[h] = dg[h] * comba_sigmoid(-a[h] - bias[h]);
    break;
  case COMBA_DECAY_CONSTANT:
    for (int64_t h = 0; h < heads; h++) du[h] = dg[h] * rate[h] * comba_sigmoid(bias[h]);
    break;
  case COMBA_DECAY_ONE: memset(du, 0, (size_t)heads * sizeof(real)); break;
  }
}

static void backward(const comba_call *call) {
  const comba_decay_kind kind = ((const comba_decay_gate_attributes *)call->attributes)->kind;
  const int64_t tokens = comba_rows(&call->input[A].shape), heads = comba_last(&call->input[A].shape);
  const int64_t blocks = comba_row_blocks(tokens, heads);
  const real *a = call->input[A].data, *bias = call->input[DT_BIAS].data, *g = call->output[0].data;
  const real *dy = call->output_gradient[0].data;
  real *da = call->input_gradient[A].data, *da_log = call->input_gradient[A_LOG].data;
  real *dbias = call->input_gradient[DT_BIAS].data;
  real *rate = call->workspace, *to_a_log = rate + heads; /* (H); (blocks, H) each */
  real *to_bias = to_a_log + blocks * heads, *scratch = to_bias + blocks * heads;
  if (comba_gradient_absent(call, 3)) return;
  if (reads_a_log(kind)) rates(call->input[A_LOG].data, heads, rate);
#pragma omp parallel for if (tokens * heads > COMBA_SERIAL / 4)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(tokens, blocks, block + 1);
    real *restrict a_log_sum = to_a_log + block * heads, *restrict bias_sum = to_bias + block * heads;
    real *restrict du = scratch + block * heads;
    memset(a_log_sum, 0, (size_t)heads * sizeof(real));
    memset(bias_sum, 0, (size_t)heads * sizeof(real));
    for (int64_t token = comba_block_start(tokens, blocks, block); token < end; token++) {
      const int64_t at = token * heads;
      token_gradient(kind, rate, a + at, bias, dy + at, heads, du);
      for (int64_t h = 0; h < heads; h++) {
        const bool live = g[at + h] > FLOOR;
        du[h] = live ? du[h] : 0;
        bias_sum[h] += du[h];
        a_log_sum[h] += live ? g[at + h] * dy[at + h] : 0;
      }
      if (da && !reads_a(kind)) memset(du, 0, (size_t)heads * sizeof(real));
      if (da) comba_store(da + at, du, heads, call->accumulate[A]);
    }
  }
  if (!reads_a_log(kind)) memset(to_a_log, 0, (size_t)(blocks * heads) * sizeof(real));
  if (da_log) comba_store_blocks(da_log, to_a_log, blocks, heads, call->accumulate[A_LOG]);
  if (dbias) comba_store_blocks(dbias, to_bias, blocks, heads, call->accumulate[DT_BIAS]);
}

#define KIND(kind) (&(const comba_decay_gate_attributes){kind})
#define LOG_RATES COMBA_FILL_UNIFORM, .low = -3, .high = 2.7
static const comba_case cases[] = {
    {.name = "mamba2",
     .attributes = KIND(COMBA_DECAY_MAMBA2),
     .input = {{COMBA_SHAPE(2, 33, 5)}, {COMBA_SHAPE(5), LOG_RATES}, {COMBA_SHAPE(5)}}},
    {.name = "mamba2, clamped and saturated",
     .attributes = KIND(COMBA_DECAY_MAMBA2),
     .input = {{COMBA_SHAPE(2, 19, 5), COMBA_FILL_UNIFORM, .low = -100, .high = 100},
               {COMBA_SHAPE(5), COMBA_FILL_UNIFORM, .low = 0, .high = 2.7},
               {COMBA_SHAPE(5)}}},
    {.name = "mamba2, more than one block",
     .attributes = KIND(COMBA_DECAY_MAMBA2),
     .input = {{COMBA_SHAPE(3, 600, 5)}, {COMBA_SHAPE(5), LOG_RATES}, {COMBA_SHAPE(5)}}},
    {.name = "sigmoid",
     .attributes = KIND(COMBA_DECAY_SIGMOID),
     .input = {{COMBA_SHAPE(2, 33, 5)}, {0}, {COMBA_SHAPE(5)}}},
    {.name = "sigmoid, clamped and saturated, A_log without use",
     .attributes = KIND(COMBA_DECAY_SIGMOID),
     .input = {{COMBA_SHAPE(1, 37, 3), COMBA_FILL_UNIFORM, .low = -200, .high = 100},
               {COMBA_SHAPE(3)},
               {COMBA_SHAPE(3)}}},
    {.name = "constant",
     .attributes = KIND(COMBA_DECAY_CONSTANT),
     .input = {{COMBA_SHAPE(2, 9, 4)}, {COMBA_SHAPE(4), LOG_RATES}, {COMBA_SHAPE(4)}}},
    {.name = "one", .attributes = KIND(COMBA_DECAY_ONE), .input = {{COMBA_SHAPE(2, 9, 4)}}},
    {.name = "one, parameters without use",
     .attributes = KIND(COMBA_DECAY_ONE),
     .input = {{COMBA_SHAPE(1, 3, 2)}, {COMBA_SHAPE(2)}, {COMBA_SHAPE(2)}}},
    {.name = "mamba2, 2048 x 16",
     .attributes = KIND(COMBA_DECAY_MAMBA2),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 16)}, {COMBA_SHAPE(16), LOG_RATES}, {COMBA_SHAPE(16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_decay_gate) = {
    .name = "decay_gate",
    .formula = "g = max(-100, -exp(A_log) softplus(a + dt_bias)), or ln sigmoid(a + dt_bias), constant, 0",
    .inputs = 3,
    .outputs = 1,
    .optional_inputs = 1u << A_LOG | 1u << DT_BIAS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER},
    .output_class = {COMBA_GATE},
    .attributes_size = sizeof(comba_decay_gate_attributes),
    .backward_inputs = 1u << A | 1u << A_LOG | 1u << DT_BIAS,
    .backward_outputs = 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
