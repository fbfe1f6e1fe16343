/* dt = clamp(softplus(raw + dt_bias_h), minimum, maximum);  v (B,T,H,P) = dt x;  g (B,T,H) = max(-100, -e^A_log_h dt)
 *
 *   dx = dt dv;  ddt = <dv, x> - e^A_log_h dg;  dA_log_h += g dg;  draw = ddt sigmoid(raw + dt_bias_h);  ddt_bias_h += draw
 *
 * The sums run over B and T. No gradient where g or dt is clamped. */
#include "ops/extent.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, RAW, A_LOG, DT_BIAS };
enum { V, G };
enum { FLOOR = -100 };

static comba_status infer(comba_signature *s) {
  const comba_time_step_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[X], *raw = &s->input[RAW];
  if (!comba_extent_fits(x, 4)) return comba_fail_shape(s, X, "(B, T, H, P)");
  const int64_t heads = x->size[2], tokens = x->size[0] * x->size[1];
  const comba_shape gates = COMBA_SHAPE(x->size[0], x->size[1], heads), scalars = COMBA_SHAPE(heads);
  if (!comba_shape_equal(raw, &gates)) return comba_fail_shape(s, RAW, "(B, T, H)");
  for (int i = A_LOG; i <= DT_BIAS; i++)
    if (!comba_shape_equal(&s->input[i], &scalars)) return comba_fail_shape(s, i, "(H)");
  if (!(attributes->minimum >= 0) || (attributes->maximum != 0 && !(attributes->maximum >= attributes->minimum)))
    return comba_fail(COMBA_ERROR_ARGUMENT, "time_step: limits %g to %g, expected 0 <= minimum <= maximum",
                      attributes->minimum, attributes->maximum);
  s->outputs = 2;
  s->output[V] = *x;
  s->output[G] = gates;
  s->backward_workspace = 2 * comba_row_blocks(tokens, heads * x->size[3]) * heads;
  return COMBA_OK;
}

typedef struct limits {
  real minimum, maximum;
} limits;

static limits limits_of(const comba_call *call) {
  const comba_time_step_attributes *attributes = call->attributes;
  return (limits){(real)attributes->minimum, attributes->maximum == 0 ? (real)HUGE_VAL : (real)attributes->maximum};
}

/* A NaN passes, so that it shows. */
static inline real clamp(real dt, limits l) {
  return dt < l.minimum ? l.minimum : dt > l.maximum ? l.maximum : dt;
}

static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], p = shape->size[3];
  const real *x = call->input[X].data, *raw = call->input[RAW].data;
  const real *a_log = call->input[A_LOG].data, *bias = call->input[DT_BIAS].data;
  const limits l = limits_of(call);
  real *v = call->output[V].data, *g = call->output[G].data;
#pragma omp parallel for if (tokens * heads * p > COMBA_SERIAL)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t h = 0; h < heads; h++) {
      const int64_t at = token * heads + h;
      const real dt = clamp(comba_softplus(raw[at] + bias[h]), l), decay = -comba_exp(a_log[h]) * dt;
      g[at] = decay < FLOOR ? FLOOR : decay;
      comba_store_scaled(v + at * p, dt, x + at * p, p, false);
    }
}

static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], p = shape->size[3];
  const int64_t blocks = comba_row_blocks(tokens, heads * p);
  const real *x = call->input[X].data, *raw = call->input[RAW].data;
  const real *a_log = call->input[A_LOG].data, *bias = call->input[DT_BIAS].data;
  const real *dv = call->output_gradient[V].data, *dg = call->output_gradient[G].data;
  const limits l = limits_of(call);
  real *dx = call->input_gradient[X].data, *draw = call->input_gradient[RAW].data;
  real *da_log = call->input_gradient[A_LOG].data, *dbias = call->input_gradient[DT_BIAS].data;
  real *to_a_log = call->workspace, *to_bias = to_a_log + blocks * heads; /* (blocks, H) each */
#pragma omp parallel for if (tokens * heads * p > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(tokens, blocks, block + 1);
    real *a_log_sum = to_a_log + block * heads, *bias_sum = to_bias + block * heads;
    memset(a_log_sum, 0, (size_t)heads * sizeof(real));
    memset(bias_sum, 0, (size_t)heads * sizeof(real));
    for (int64_t token = comba_block_start(tokens, blocks, block); token < end; token++)
      for (int64_t h = 0; h < heads; h++) {
        const int64_t at = token * heads + h;
        const real u = raw[at] + bias[h], free = comba_softplus(u), dt = clamp(free, l);
        const real rate = -comba_exp(a_log[h]), slope = dg && rate * dt > FLOOR ? rate * dg[at] : 0;
        const real ddt = slope + (dv ? comba_dot(dv + at * p, x + at * p, p) : 0);
        const real du = free >= l.minimum && free <= l.maximum ? ddt * comba_sigmoid(u) : 0;
        a_log_sum[h] += slope * dt;
        bias_sum[h] += du;
        if (draw) comba_store(draw + at, &du, 1, call->accumulate[RAW]);
        if (dx && dv)
          comba_store_scaled(dx + at * p, dt, dv + at * p, p, call->accumulate[X]);
        else if (dx && !call->accumulate[X])
          memset(dx + at * p, 0, (size_t)p * sizeof(real));
      }
  }
  if (da_log) comba_store_blocks(da_log, to_a_log, blocks, heads, call->accumulate[A_LOG]);
  if (dbias) comba_store_blocks(dbias, to_bias, blocks, heads, call->accumulate[DT_BIAS]);
}

#define LOG_RATES COMBA_FILL_UNIFORM, .low = -3, .high = 2.7
static const comba_case cases[] = {
    {.name = "odd heads",
     .input = {{COMBA_SHAPE(2, 33, 5, 7)}, {COMBA_SHAPE(2, 33, 5)}, {COMBA_SHAPE(5), LOG_RATES}, {COMBA_SHAPE(5)}}},
    {.name = "more than one block",
     .input = {{COMBA_SHAPE(3, 50, 3, 64)}, {COMBA_SHAPE(3, 50, 3)}, {COMBA_SHAPE(3), LOG_RATES}, {COMBA_SHAPE(3)}}},
    {.name = "limits",
     .attributes = &(const comba_time_step_attributes){.minimum = 0.3, .maximum = 1.5},
     .input = {{COMBA_SHAPE(2, 33, 5, 4)},
               {COMBA_SHAPE(2, 33, 5), .scale = 2},
               {COMBA_SHAPE(5), LOG_RATES},
               {COMBA_SHAPE(5)}}},
    {.name = "saturated, g clamped",
     .input = {{COMBA_SHAPE(2, 19, 5, 3)},
               {COMBA_SHAPE(2, 19, 5), COMBA_FILL_UNIFORM, .low = -100, .high = 100},
               {COMBA_SHAPE(5), COMBA_FILL_UNIFORM, .low = 0, .high = 2.7},
               {COMBA_SHAPE(5)}}},
    {.name = "2048 x 16 x 64",
     .benchmark = true,
     .input =
         {{COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(2, 1024, 16)}, {COMBA_SHAPE(16), LOG_RATES}, {COMBA_SHAPE(16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_time_step) = {
    .name = "time_step",
    .formula = "dt = clamp(softplus(raw + dt_bias)), v = dt x, g = max(-100, -exp(A_log) dt)",
    .inputs = 4,
    .outputs = 2,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION, COMBA_GATE},
    .attributes_size = sizeof(comba_time_step_attributes),
    .backward_inputs = 1u << X | 1u << RAW | 1u << A_LOG | 1u << DT_BIAS,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
