/* g (B,T,H,K) = max(minimum, f(x)), log decay of each channel, with r = e^A_log_h (1 without A_log) and u = x + dt_bias_hc:
 *
 *   log sigmoid  f = scale ln sigmoid(r u)    du = scale r sigmoid(-r u) dg
 *   sigmoid      f = -scale sigmoid(r u)      du = -scale r s (1 - s) dg, s = sigmoid(r u)
 *   softplus     f = -scale r softplus(u)     du = -scale r sigmoid(u) dg
 *
 * dx = du;  ddt_bias_hc += du;  dA_log_h += u du, for softplus f dg. No gradient where g is clamped. */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, A_LOG, DT_BIAS };
enum { FLOOR = -100 };

static comba_status infer(comba_signature *s) {
  const comba_channel_decay_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[X], *a_log = &s->input[A_LOG], *bias = &s->input[DT_BIAS];
  if ((unsigned)attributes->kind > COMBA_CHANNEL_SOFTPLUS)
    return comba_fail(COMBA_ERROR_ARGUMENT, "channel_decay: kind is %d, expected 0 to %d", (int)attributes->kind,
                      COMBA_CHANNEL_SOFTPLUS);
  if (!(attributes->scale >= 0 && attributes->minimum <= 0))
    return comba_fail(COMBA_ERROR_ARGUMENT, "channel_decay: scale %g, minimum %g, expected >= 0 and <= 0",
                      attributes->scale, attributes->minimum);
  if (!comba_extent_fits(x, 4)) return comba_fail_shape(s, X, "(B, T, H, K)");
  const int64_t heads = x->size[2], channels = heads * x->size[3];
  if (a_log->rank && (a_log->rank != 1 || a_log->size[0] != heads)) return comba_fail_shape(s, A_LOG, "(H)");
  if (bias->rank && (bias->rank != 1 || bias->size[0] != channels)) return comba_fail_shape(s, DT_BIAS, "(H K)");
  s->outputs = 1;
  s->output[0] = *x;
  s->backward_workspace = comba_row_blocks(x->size[0] * x->size[1], channels) * (heads + 2 * channels);
  return COMBA_OK;
}

/* What every row needs. */
typedef struct gate {
  comba_channel_kind kind;
  int64_t tokens, heads, K;
  real scale, minimum;
  const real *a_log, *bias;
} gate;

static gate gate_of(const comba_call *call) {
  const comba_channel_decay_attributes *attributes = call->attributes;
  const int64_t *size = call->input[X].shape.size;
  return (gate){
      .kind = attributes->kind,
      .tokens = size[0] * size[1],
      .heads = size[2],
      .K = size[3],
      .scale = attributes->scale == 0 ? 1 : (real)attributes->scale,
      .minimum = attributes->minimum == 0 ? FLOOR : (real)attributes->minimum,
      .a_log = call->input[A_LOG].data,
      .bias = call->input[DT_BIAS].data,
  };
}

static real rate_of(const gate *p, int64_t head) {
  return p->a_log ? comba_exp(p->a_log[head]) : 1;
}

static real shifted(const gate *p, int64_t head, int64_t c, real x) {
  return p->bias ? x + p->bias[head * p->K + c] : x;
}

static void forward(const comba_call *call) {
  const gate p = gate_of(call);
  const int64_t rows = p.tokens * p.heads;
#pragma omp parallel for if (rows * p.K > COMBA_SERIAL / 4)
  for (int64_t row = 0; row < rows; row++) {
    const int64_t head = row % p.heads;
    const real *x = (const real *)call->input[X].data + row * p.K, rate = rate_of(&p, head);
    real *g = (real *)call->output[0].data + row * p.K;
    for (int64_t c = 0; c < p.K; c++) {
      const real u = shifted(&p, head, c, x[c]);
      real f;
      switch (p.kind) {
      case COMBA_CHANNEL_LOG_SIGMOID: f = -p.scale * comba_softplus(-rate * u); break;
      case COMBA_CHANNEL_SIGMOID: f = -p.scale * comba_sigmoid(rate * u); break;
      default: f = -p.scale * rate * comba_softplus(u); break;
      }
      g[c] = f < p.minimum ? p.minimum : f; /* a NaN passes, so that it shows */
    }
  }
}

/* du (K) of one row; returns its part of the gradient of A_log. */
static real row_gradient(const gate *p, int64_t head, const real *x, const real *g, const real *dg, real *du) {
  const real rate = rate_of(p, head);
  real to_a_log = 0;
  for (int64_t c = 0; c < p->K; c++) {
    const real u = shifted(p, head, c, x[c]), live = g[c] > p->minimum ? dg[c] : 0, s = comba_sigmoid(rate * u);
    switch (p->kind) {
    case COMBA_CHANNEL_LOG_SIGMOID: du[c] = p->scale * rate * comba_sigmoid(-rate * u) * live; break;
    case COMBA_CHANNEL_SIGMOID: du[c] = -p->scale * rate * s * (1 - s) * live; break;
    default: du[c] = -p->scale * rate * comba_sigmoid(u) * live; break;
    }
    to_a_log += p->kind == COMBA_CHANNEL_SOFTPLUS ? g[c] * live : u * du[c];
  }
  return to_a_log;
}

static void backward(const comba_call *call) {
  const gate p = gate_of(call);
  const int64_t channels = p.heads * p.K, blocks = comba_row_blocks(p.tokens, channels);
  const real *x = call->input[X].data, *g = call->output[0].data, *dg = call->output_gradient[0].data;
  real *dx = call->input_gradient[X].data, *da_log = call->input_gradient[A_LOG].data;
  real *dbias = call->input_gradient[DT_BIAS].data;
  real *to_a_log = call->workspace, *to_bias = to_a_log + blocks * p.heads; /* (blocks, H); (blocks, H K) each */
  real *scratch = to_bias + blocks * channels;
  if (comba_gradient_absent(call, 3)) return;
#pragma omp parallel for if (p.tokens * channels > COMBA_SERIAL / 4)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(p.tokens, blocks, block + 1);
    real *a_log_sum = to_a_log + block * p.heads, *bias_sum = to_bias + block * channels;
    real *du = scratch + block * channels;
    memset(a_log_sum, 0, (size_t)p.heads * sizeof(real));
    memset(bias_sum, 0, (size_t)channels * sizeof(real));
    for (int64_t token = comba_block_start(p.tokens, blocks, block); token < end; token++) {
      const int64_t at = token * channels;
      for (int64_t head = 0; head < p.heads; head++) {
        const int64_t from = at + head * p.K;
        a_log_sum[head] += row_gradient(&p, head, x + from, g + from, dg + from, du + head * p.K);
      }
      comba_store(bias_sum, du, channels, true);
      if (dx) comba_store(dx + at, du, channels, call->accumulate[X]);
    }
  }
  if (da_log) comba_store_blocks(da_log, to_a_log, blocks, p.heads, call->accumulate[A_LOG]);
  if (dbias) comba_store_blocks(dbias, to_bias, blocks, channels, call->accumulate[DT_BIAS]);
}

#define KIND(...) (&(const comba_channel_decay_attributes){__VA_ARGS__})
static const comba_case cases[] = {
    {.name = "log sigmoid",
     .attributes = KIND(COMBA_CHANNEL_LOG_SIGMOID, 0.0625, 0),
     .input = {{COMBA_SHAPE(2, 33, 3, 16)}}},
    {.name = "log sigmoid, clamped and saturated",
     .attributes = KIND(COMBA_CHANNEL_LOG_SIGMOID, 1, -5),
     .input = {{COMBA_SHAPE(1, 19, 2, 8), COMBA_FILL_UNIFORM, .low = -200, .high = 100}}},
    {.name = "log sigmoid, rate and bias",
     .attributes = KIND(COMBA_CHANNEL_LOG_SIGMOID, 0, 0),
     .input = {{COMBA_SHAPE(2, 9, 3, 8)}, {COMBA_SHAPE(3), .scale = 0.3}, {COMBA_SHAPE(24)}}},
    {.name = "sigmoid", .attributes = KIND(COMBA_CHANNEL_SIGMOID, 0.6065, 0), .input = {{COMBA_SHAPE(2, 33, 3, 16)}}},
    {.name = "sigmoid, rate and bias",
     .attributes = KIND(COMBA_CHANNEL_SIGMOID, 5, 0),
     .input = {{COMBA_SHAPE(2, 33, 3, 16)}, {COMBA_SHAPE(3), .scale = 0.3}, {COMBA_SHAPE(48)}}},
    {.name = "softplus",
     .attributes = KIND(COMBA_CHANNEL_SOFTPLUS, 0, 0),
     .input = {{COMBA_SHAPE(2, 33, 3, 16)}, {COMBA_SHAPE(3), .scale = 0.5}, {COMBA_SHAPE(48)}}},
    {.name = "softplus, more than one block",
     .attributes = KIND(COMBA_CHANNEL_SOFTPLUS, 0, 0),
     .input = {{COMBA_SHAPE(1, 600, 2, 8), COMBA_FILL_UNIFORM, .low = -100, .high = 2},
               {COMBA_SHAPE(2), COMBA_FILL_UNIFORM, .low = 0, .high = 2.7},
               {COMBA_SHAPE(16)}}},
    {.name = "softplus, 2048 x 16 x 64",
     .attributes = KIND(COMBA_CHANNEL_SOFTPLUS, 0, 0),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(16)}, {COMBA_SHAPE(1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_channel_decay) = {
    .name = "channel_decay",
    .formula = "g = max(minimum, f(x)), f scaled ln sigmoid, -sigmoid or -exp(A_log) softplus(x + dt_bias)",
    .inputs = 3,
    .outputs = 1,
    .optional_inputs = 1u << A_LOG | 1u << DT_BIAS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER},
    .output_class = {COMBA_GATE},
    .attributes_size = sizeof(comba_channel_decay_attributes),
    .backward_inputs = 1u << X | 1u << A_LOG | 1u << DT_BIAS,
    .backward_outputs = 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
