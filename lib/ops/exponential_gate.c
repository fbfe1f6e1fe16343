/* The gates of mLSTM, held in range by a running maximum m (xLSTM, arXiv 2405.04517, Eqs. 15 to 17), for each head:
 *   i_t = cap(x_t);  f_t = ln sigmoid(cap(y_t)), or cap(y_t) where the forget gate is an exponential too
 *   m_t = max(f_t + m_{t-1}, i_t);  g_t = f_t + m_{t-1} - m_t <= 0;  s_t = e^{i_t - m_t} <= 1
 * with cap(x) = c tanh(x / c), or x.
 *
 * Backward, u_t the gradient of m_t:
 *   u_t = dm_t - dg_t - s_t ds_t + (dg_{t+1} + u_{t+1} where m_{t+1} = f_{t+1} + m_t)
 *   di_t = s_t ds_t + u_t where m_t = i_t;  df_t = dg_t + u_t where m_t = f_t + m_{t-1}
 * Sums run along a sequence, so a task is one sequence and head. */
#include "ops/extent.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "ops/sequences.h"

enum { INPUT_GATE, FORGET_GATE, STATE, CU_SEQLENS };
enum { DECAY, SCALE, MAXIMUM };

static comba_status infer(comba_signature *s) {
  const comba_exponential_gate_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[INPUT_GATE], *state = &s->input[STATE];
  int64_t sequences;
  if (!(attributes->cap >= 0 && attributes->cap < HUGE_VAL))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: cap is %g, expected a finite number >= 0", s->op, attributes->cap);
  if (!comba_extent_fits(x, 3)) return comba_fail_shape(s, INPUT_GATE, "(B, T, H)");
  if (!comba_shape_equal(&s->input[FORGET_GATE], x)) return comba_fail_shape(s, FORGET_GATE, "(B, T, H), as input 0");
  const comba_status status = comba_infer_sequences(s, CU_SEQLENS, x->size[0], &sequences);
  if (status != COMBA_OK) return status;
  if (state->rank && !comba_shape_equal(state, &COMBA_SHAPE(sequences, x->size[2])))
    return comba_fail_shape(s, STATE, "(N, H), N = B without cu_seqlens");
  s->outputs = 3;
  for (int i = 0; i < 3; i++) s->output[i] = *x;
  return COMBA_OK;
}

static real capped(real x, double cap) {
  return cap > 0 ? (real)cap * comba_real_tanh(x / (real)cap) : x;
}

static real log_forget(const comba_exponential_gate_attributes *a, real y) {
  const real x = capped(y, a->cap);
  return a->exponential_forget ? x : -comba_softplus(-x);
}

/* f + m rounded up, so that g <= 0, and so that the g of a sequence add up to what its m say: m is a state, and rounding it
 * to the nearest would let the weights of old tokens drift. */
static real carried(real f, real m) {
  const double sum = (double)f + (double)m;
  const real nearest = (real)sum;
#ifdef COMBA_REAL_DOUBLE
  return nearest;
#else
  return (double)nearest < sum ? nextafterf(nearest, HUGE_VALF) : nearest;
#endif
}

static void forward(const comba_call *call) {
  const comba_exponential_gate_attributes *a = call->attributes;
  const comba_sequences sequences = comba_sequences_of(&call->input[INPUT_GATE], &call->input[CU_SEQLENS]);
  const int64_t heads = comba_last(&call->input[INPUT_GATE].shape), tasks = sequences.count * heads;
  const real *x = call->input[INPUT_GATE].data, *y = call->input[FORGET_GATE].data, *state = call->input[STATE].data;
  real *g = call->output[DECAY].data, *s = call->output[SCALE].data, *maximum = call->output[MAXIMUM].data;
#pragma omp parallel for if (comba_rows(&call->input[INPUT_GATE].shape) * heads > COMBA_SERIAL / 4)
  for (int64_t task = 0; task < tasks; task++) {
    const int64_t n = task / heads, h = task % heads, end = comba_sequence_start(&sequences, n + 1);
    real m = state ? state[task] : 0;
    for (int64_t row = comba_sequence_start(&sequences, n); row < end; row++) {
      const int64_t at = row * heads + h;
      const real i = capped(x[at], a->cap), f = log_forget(a, y[at]), from_before = carried(f, m);
      const real next = i > from_before ? i : from_before;
      g[at] = (real)((double)f + (double)m - (double)next);
      s[at] = comba_exp(i - next);
      maximum[at] = m = next;
    }
  }
}

static void store(real *gradient, int64_t at, real value, bool accumulate) {
  if (gradient) gradient[at] = (accumulate ? gradient[at] : 0) + value;
}

static void backward(const comba_call *call) {
  const comba_exponential_gate_attributes *a = call->attributes;
  const comba_sequences sequences = comba_sequences_of(&call->input[INPUT_GATE], &call->input[CU_SEQLENS]);
  const int64_t heads = comba_last(&call->input[INPUT_GATE].shape), tasks = sequences.count * heads;
  const real *x = call->input[INPUT_GATE].data, *y = call->input[FORGET_GATE].data, *state = call->input[STATE].data;
  const real *s = call->output[SCALE].data, *maximum = call->output[MAXIMUM].data;
  const real *dg = call->output_gradient[DECAY].data, *ds = call->output_gradient[SCALE].data;
  const real *dm = call->output_gradient[MAXIMUM].data;
#pragma omp parallel for if (comba_rows(&call->input[INPUT_GATE].shape) * heads > COMBA_SERIAL / 4)
  for (int64_t task = 0; task < tasks; task++) {
    const int64_t n = task / heads, h = task % heads, first = comba_sequence_start(&sequences, n);
    real from_after = 0;
    for (int64_t row = comba_sequence_start(&sequences, n + 1) - 1; row >= first; row--) {
      const int64_t at = row * heads + h;
      const real before = row > first ? maximum[at - heads] : (state ? state[task] : 0);
      const real i = capped(x[at], a->cap), cap_y = capped(y[at], a->cap), to_decay = dg ? dg[at] : 0;
      const bool takes_input = i > carried(log_forget(a, y[at]), before);
      const real to_scale = ds ? s[at] * ds[at] : 0, u = (dm ? dm[at] : 0) - to_decay - to_scale + from_after;
      real di = to_scale + (takes_input ? u : 0), df = to_decay + (takes_input ? 0 : u);
      from_after = df;
      if (!a->exponential_forget) df *= comba_sigmoid(-cap_y);
      if (a->cap > 0) {
        const real ratio_i = i / (real)a->cap, ratio_f = cap_y / (real)a->cap;
        di *= 1 - ratio_i * ratio_i;
        df *= 1 - ratio_f * ratio_f;
      }
      store(call->input_gradient[INPUT_GATE].data, at, di, call->accumulate[INPUT_GATE]);
      store(call->input_gradient[FORGET_GATE].data, at, df, call->accumulate[FORGET_GATE]);
    }
    store(call->input_gradient[STATE].data, task, from_after, call->accumulate[STATE]);
  }
}

static const comba_exponential_gate_attributes capped_gates = {.cap = 2};
static const comba_exponential_gate_attributes exponential = {.cap = 15, .exponential_forget = true};
static const int32_t packed[] = {0, 1, 1, 40};

static const comba_case cases[] = {
    {.name = "sigmoid", .input = {{COMBA_SHAPE(2, 37, 3)}, {COMBA_SHAPE(2, 37, 3)}}},
    {.name = "capped, from a state",
     .attributes = &capped_gates,
     .input = {{COMBA_SHAPE(2, 9, 2)}, {COMBA_SHAPE(2, 9, 2), .scale = 3}, {COMBA_SHAPE(2, 2)}}},
    {.name = "exponential forget gate",
     .attributes = &exponential,
     .input = {{COMBA_SHAPE(1, 50, 4)}, {COMBA_SHAPE(1, 50, 4)}}},
    {.name = "packed, from a state",
     .input = {{COMBA_SHAPE(1, 40, 2)},
               {COMBA_SHAPE(1, 40, 2)},
               {COMBA_SHAPE(3, 2)},
               {COMBA_SHAPE(4), COMBA_FILL_VALUES, .values = packed}}},
    {.name = "one token, saturated",
     .input = {{COMBA_SHAPE(2, 1, 7), .scale = 100}, {COMBA_SHAPE(2, 1, 7), .scale = 100}, {COMBA_SHAPE(2, 7)}}},
    {.name = "2 x 2048 x 16",
     .benchmark = true,
     .attributes = &capped_gates,
     .input = {{COMBA_SHAPE(2, 2048, 16)}, {COMBA_SHAPE(2, 2048, 16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_exponential_gate) = {
    .name = "exponential_gate",
    .formula = "m_t = max(f_t + m_{t-1}, i_t), g = f_t + m_{t-1} - m_t, s = e^{i_t - m_t}",
    .inputs = 4,
    .outputs = 3,
    .optional_inputs = 1u << STATE | 1u << CU_SEQLENS,
    .input_class = {COMBA_GATE, COMBA_GATE, COMBA_STATE, COMBA_INDEX},
    .output_class = {COMBA_GATE, COMBA_GATE, COMBA_GATE},
    .attributes_size = sizeof(comba_exponential_gate_attributes),
    .backward_inputs = 1u << INPUT_GATE | 1u << FORGET_GATE | 1u << STATE | 1u << CU_SEQLENS,
    .backward_outputs = 1u << SCALE | 1u << MAXIMUM,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
