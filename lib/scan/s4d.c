/* Diagonal state space model (S4D, arXiv 2206.11893): for each channel M complex states, discretised by zero-order hold,
 *   dt = e^log_dt,  A_m = -e^log_rate_m + i frequency_m,  a_m = e^{dt A_m},  w_m = C_m (a_m - 1) / A_m
 *   s_t = a s_{t-1} + u_t,  y_t = 2 Re sum_m w_m s_{t,m}
 * where 2 Re stands for the states' conjugates. Token by token; or as a convolution: inside of a chunk with the kernel
 * K_j = 2 Re sum_m w_m a_m^j, and from chunk to chunk by the state.
 *
 * Backward goes token by token from the states at the chunks' starts. With p_t such that dL = Re sum p_t ds_t (complex
 * derivatives, no conjugates):
 *   p_t = 2 w dy_t + a p_{t+1};  du_t = Re sum p_t;  dw = sum 2 dy_t s_t;  da = sum p_t s_{t-1}
 *
 * A task is a channel with all its sequences, so that the sums for its parameters are its own. Complex vectors are M real
 * parts, then M imaginary ones. Saved: the states at the chunks' starts. */
#include "scan/scan.h"

#include <complex.h>

#include "ops/extent.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "ops/sequences.h"

enum { U, LOG_DT, LOG_RATE, FREQUENCY, C, INITIAL_STATE, CU_SEQLENS, INPUTS };
enum { Y, FINAL_STATE };

static comba_status infer(comba_signature *s) {
  const comba_shape *u = &s->input[U], *rate = &s->input[LOG_RATE];
  int64_t sequences = 0;
  if (!comba_extent_fits(u, 3)) return comba_fail_shape(s, U, "(B, T, d)");
  const int64_t d = u->size[2], length = u->size[1];
  if (!comba_extent_fits(rate, 2) || rate->size[0] != d) return comba_fail_shape(s, LOG_RATE, "(d, M)");
  const int64_t M = rate->size[1];
  const comba_shape steps = COMBA_SHAPE(d), pairs = COMBA_SHAPE(d, M, 2);
  if (!comba_shape_equal(&s->input[LOG_DT], &steps)) return comba_fail_shape(s, LOG_DT, "(d)");
  if (!comba_shape_equal(&s->input[FREQUENCY], rate)) return comba_fail_shape(s, FREQUENCY, "(d, M)");
  if (!comba_shape_equal(&s->input[C], &pairs)) return comba_fail_shape(s, C, "(d, M, 2)");
  const comba_status status = comba_infer_sequences(s, CU_SEQLENS, u->size[0], &sequences);
  if (status != COMBA_OK) return status;
  const comba_shape states = COMBA_SHAPE(sequences, d, 2, M);
  if (s->input[INITIAL_STATE].rank && !comba_shape_equal(&s->input[INITIAL_STATE], &states))
    return comba_fail_shape(s, INITIAL_STATE, "(N, d, 2, M)");
  s->outputs = 2;
  s->output[Y] = *u;
  s->output[FINAL_STATE] = states;
  s->saved = 1;
  s->saved_shape[0] = COMBA_SHAPE(scan_states(s->input[CU_SEQLENS].rank, sequences, length), d, 2 * M);
  if (!comba_extent_fits(&s->saved_shape[0], 3)) return comba_fail_extent(s, &s->saved_shape[0]);
  s->forward_workspace = scan_slots(d) * (2 * M * (4 + CHUNK) + 3 * CHUNK);
  s->backward_workspace = scan_slots(d) * (2 * M * (6 + CHUNK));
  s->forward_flops = 12.0 * (double)M * (double)comba_shape_elements(u);
  s->backward_flops = 2.5 * s->forward_flops;
  return COMBA_OK;
}

/* a and w of one state, in double: their powers reach far */
typedef struct discrete {
  double complex A, C, a, w;
  double dt;
} discrete;

static discrete discretize(const comba_call *call, int64_t channel, int64_t M, int64_t m) {
  const real *pair = (const real *)call->input[C].data + 2 * (channel * M + m);
  discrete x = {.dt = exp((double)((const real *)call->input[LOG_DT].data)[channel])};
  x.A = -exp((double)((const real *)call->input[LOG_RATE].data)[channel * M + m]) +
        I * (double)((const real *)call->input[FREQUENCY].data)[channel * M + m];
  x.C = (double)pair[0] + I * (double)pair[1];
  x.a = cexp(x.dt * x.A);
  x.w = x.C * (x.a - 1) / x.A;
  return x;
}

static void discretize_channel(const comba_call *call, int64_t channel, int64_t M, real *a, real *w) {
  for (int64_t m = 0; m < M; m++) {
    const discrete x = discretize(call, channel, M, m);
    a[m] = (real)creal(x.a);
    a[M + m] = (real)cimag(x.a);
    w[m] = (real)(2 * creal(x.w)); /* with the 2 of the conjugates */
    w[M + m] = (real)(2 * cimag(x.w));
  }
}

/* out = x y, element by element; out may be x or y */
static void multiply(int64_t M, const real *x, const real *y, real *out) {
#pragma omp simd
  for (int64_t m = 0; m < M; m++) {
    const real re = x[m] * y[m] - x[M + m] * y[M + m], im = x[m] * y[M + m] + x[M + m] * y[m];
    out[m] = re;
    out[M + m] = im;
  }
}

/* Re sum x y */
static real read_out(int64_t M, const real *x, const real *y) {
  return scan_dot(x, y, M) - scan_dot(x + M, y + M, M);
}

/* s = a s + u */
static void advance(int64_t M, const real *a, real u, real *s) {
  multiply(M, a, s, s);
  for (int64_t m = 0; m < M; m++) s[m] += u;
}

/* Powers a^0 to a^CHUNK, (CHUNK + 1, 2 M), and the kernel (CHUNK) */
static void prepare_chunk(int64_t M, const real *a, const real *w, real *powers, real *kernel) {
  for (int64_t m = 0; m < M; m++) {
    powers[m] = 1;
    powers[M + m] = 0;
  }
  for (int64_t j = 0; j < CHUNK; j++) {
    kernel[j] = read_out(M, w, powers + 2 * M * j);
    multiply(M, a, powers + 2 * M * j, powers + 2 * M * (j + 1));
  }
}

/* y (n) and the state after n tokens; `reader` is scratch (2 M) */
static void run_chunk(int64_t M, int64_t n, const real *w, const real *powers, const real *kernel, const real *u,
                      real *s, real *y, real *reader) {
  multiply(M, w, s, reader);
  for (int64_t i = 0; i < n; i++) {
    real sum = read_out(M, reader, powers + 2 * M * (i + 1));
    for (int64_t j = 0; j <= i; j++) sum += kernel[i - j] * u[j];
    y[i] = sum;
  }
  multiply(M, powers + 2 * M * n, s, s);
  for (int64_t j = 0; j < n; j++) {
    const real *power = powers + 2 * M * (n - 1 - j);
    for (int64_t m = 0; m < 2 * M; m++) s[m] += u[j] * power[m];
  }
}

static bool in_chunks(const comba_call *call) {
  const comba_mode mode = ((const comba_s4d_attributes *)call->attributes)->mode;
  return mode == COMBA_MODE_CHUNK || (mode == COMBA_MODE_AUTO && call->input[U].shape.size[1] >= CHUNK);
}

static void forward_channel(const void *context, int64_t channel, real *scratch) {
  const comba_call *call = context;
  const int64_t d = call->input[U].shape.size[2], M = call->input[LOG_RATE].shape.size[1];
  const comba_sequences all = comba_sequences_of(&call->input[U], &call->input[CU_SEQLENS]);
  const bool chunks = in_chunks(call);
  const real *input = (const real *)call->input[U].data + channel, *initial = call->input[INITIAL_STATE].data;
  real *output = (real *)call->output[Y].data + channel, *saved = call->saved[0].data;
  real *a = scratch, *w = a + 2 * M, *reader = w + 2 * M, *powers = reader + 2 * M; /* (CHUNK + 1, 2 M) */
  real *kernel = powers + 2 * M * (CHUNK + 1), *u = kernel + CHUNK, *y = u + CHUNK;
  discretize_channel(call, channel, M, a, w);
  if (chunks) prepare_chunk(M, a, w, powers, kernel);
  for (int64_t sequence = 0; sequence < all.count; sequence++) {
    const int64_t first = comba_sequence_start(&all, sequence), end = comba_sequence_start(&all, sequence + 1);
    int64_t slot = scan_state_slot(all.cu_seqlens, sequence, all.length, first);
    const int64_t at = (sequence * d + channel) * 2 * M;
    real *s = (real *)call->output[FINAL_STATE].data + at;
    if (!initial || s != initial + at) scan_load_state(s, initial ? initial + at : NULL, 2 * M);
    for (int64_t start = first; start < end; start += CHUNK, slot++) {
      const int64_t n = end - start < CHUNK ? end - start : CHUNK;
      if (saved) memcpy(saved + (slot * d + channel) * 2 * M, s, (size_t)(2 * M) * sizeof(real));
      for (int64_t i = 0; i < n; i++) u[i] = input[(start + i) * d];
      if (chunks)
        run_chunk(M, n, w, powers, kernel, u, s, y, reader);
      else
        for (int64_t i = 0; i < n; i++) {
          advance(M, a, u[i], s);
          y[i] = read_out(M, w, s);
        }
      for (int64_t i = 0; i < n; i++) output[(start + i) * d] = y[i];
    }
  }
}

static void forward(const comba_call *call) {
  const int64_t M = call->input[LOG_RATE].shape.size[1];
  scan_deal(call->input[U].shape.size[2], call->workspace, 2 * M * (4 + CHUNK) + 3 * CHUNK, forward_channel, call);
}

static void store(const comba_call *call, int input, int64_t at, double value) {
  real *gradient = call->input_gradient[input].data;
  if (gradient) gradient[at] = (real)value + (call->accumulate[input] ? gradient[at] : 0);
}

/* From da and dw (with respect to w without its 2) of one state to its parameters; returns dL/d log_dt. */
static double store_parameters(const comba_call *call, int64_t channel, int64_t M, int64_t m, double complex da,
                               double complex dw) {
  const discrete x = discretize(call, channel, M, m);
  const int64_t at = channel * M + m;
  da += dw * x.C / x.A;
  const double complex dC = dw * (x.a - 1) / x.A, dA = da * x.dt * x.a - dw * x.w / x.A;
  store(call, C, 2 * at, creal(dC));
  store(call, C, 2 * at + 1, -cimag(dC));
  store(call, LOG_RATE, at, creal(dA) * creal(x.A));
  store(call, FREQUENCY, at, -cimag(dA));
  return creal(da * x.A * x.a) * x.dt;
}

/* One chunk backwards: history (n, 2 M) are the states before each token, p what comes from the tokens after it. */
static void backward_chunk(const comba_call *call, int64_t channel, int64_t start, int64_t n, const real *a,
                           const real *w, real *history, real *p, real *da, real *dw) {
  const int64_t d = call->input[U].shape.size[2], M = call->input[LOG_RATE].shape.size[1];
  const real *u = (const real *)call->input[U].data + start * d + channel;
  const real *dy = call->output_gradient[Y].data;
  real *du = call->input_gradient[U].data;
  real *after = history + 2 * M * n;
  for (int64_t i = 0; i < n; i++) {
    memcpy(history + 2 * M * (i + 1), history + 2 * M * i, (size_t)(2 * M) * sizeof(real));
    advance(M, a, u[i * d], history + 2 * M * (i + 1));
  }
  for (int64_t i = n - 1; i >= 0; i--, after -= 2 * M) {
    const real slope = dy ? dy[(start + i) * d + channel] : 0, *before = after - 2 * M;
#pragma omp simd
    for (int64_t m = 0; m < 2 * M; m++) {
      p[m] += slope * w[m];
      dw[m] += 2 * slope * after[m];
    }
#pragma omp simd
    for (int64_t m = 0; m < M; m++) {
      da[m] += p[m] * before[m] - p[M + m] * before[M + m];
      da[M + m] += p[m] * before[M + m] + p[M + m] * before[m];
    }
    if (du) {
      real sum = 0;
      for (int64_t m = 0; m < M; m++) sum += p[m];
      real *to = du + (start + i) * d + channel;
      *to = sum + (call->accumulate[U] ? *to : 0);
    }
    multiply(M, a, p, p);
  }
}

static void backward_channel(const void *context, int64_t channel, real *scratch) {
  const comba_call *call = context;
  const int64_t d = call->input[U].shape.size[2], M = call->input[LOG_RATE].shape.size[1];
  const comba_sequences all = comba_sequences_of(&call->input[U], &call->input[CU_SEQLENS]);
  const real *saved = call->saved[0].data, *dfinal = call->output_gradient[FINAL_STATE].data;
  real *dinitial = call->input_gradient[INITIAL_STATE].data;
  real *a = scratch, *w = a + 2 * M, *p = w + 2 * M, *da = p + 2 * M, *dw = da + 2 * M, *history = dw + 2 * M;
  discretize_channel(call, channel, M, a, w);
  memset(da, 0, (size_t)(4 * M) * sizeof(real));
  for (int64_t sequence = 0; sequence < all.count; sequence++) {
    const int64_t first = comba_sequence_start(&all, sequence), end = comba_sequence_start(&all, sequence + 1);
    const int64_t slot = scan_state_slot(all.cu_seqlens, sequence, all.length, first);
    const int64_t at = (sequence * d + channel) * 2 * M;
    scan_load_state(p, dfinal ? dfinal + at : NULL, 2 * M);
    for (int64_t m = M; m < 2 * M; m++) p[m] = -p[m]; /* Re p ds has the imaginary part with a minus */
    for (int64_t chunk = (end - first + CHUNK - 1) / CHUNK - 1; chunk >= 0; chunk--) {
      const int64_t start = first + chunk * CHUNK, n = end - start < CHUNK ? end - start : CHUNK;
      memcpy(history, saved + ((slot + chunk) * d + channel) * 2 * M, (size_t)(2 * M) * sizeof(real));
      backward_chunk(call, channel, start, n, a, w, history, p, da, dw);
    }
    for (int64_t m = M; m < 2 * M; m++) p[m] = -p[m];
    scan_store_gradient(dinitial ? dinitial + at : NULL, p, 2 * M, call->accumulate[INITIAL_STATE]);
  }
  double dlog_dt = 0;
  for (int64_t m = 0; m < M; m++)
    dlog_dt += store_parameters(call, channel, M, m, (double)da[m] + I * (double)da[M + m],
                                (double)dw[m] + I * (double)dw[M + m]);
  store(call, LOG_DT, channel, dlog_dt);
}

static void backward(const comba_call *call) {
  const int64_t M = call->input[LOG_RATE].shape.size[1];
  scan_deal(call->input[U].shape.size[2], call->workspace, 2 * M * (6 + CHUNK), backward_channel, call);
}

#define MODE(name) (&(const comba_s4d_attributes){COMBA_MODE_##name})
/* d channels of M states: rates around 1, time steps around e^-2 */
#define PARAMETERS(d, M)                                                                                               \
  {COMBA_SHAPE(d), COMBA_FILL_UNIFORM, .low = -4, .high = -1}, {COMBA_SHAPE(d, M), .scale = 0.5},                      \
      {COMBA_SHAPE(d, M), .scale = 3}, {                                                                               \
    COMBA_SHAPE(d, M, 2)                                                                                               \
  }
static const int32_t offsets[] = {0, 3, 3, 70, 135};
#define PACKED                                                                                                         \
  { COMBA_SHAPE(5), COMBA_FILL_VALUES, .values = offsets }
static const comba_case cases[] = {
    {.name = "chunks", .attributes = MODE(CHUNK), .input = {{COMBA_SHAPE(2, 131, 3)}, PARAMETERS(3, 5)}},
    {.name = "token by token", .attributes = MODE(RECURRENT), .input = {{COMBA_SHAPE(2, 131, 3)}, PARAMETERS(3, 5)}},
    {.name = "chunks, initial state",
     .attributes = MODE(CHUNK),
     .input = {{COMBA_SHAPE(2, 67, 2)}, PARAMETERS(2, 4), {COMBA_SHAPE(2, 2, 2, 4)}}},
    {.name = "token by token, initial state",
     .attributes = MODE(RECURRENT),
     .input = {{COMBA_SHAPE(2, 67, 2)}, PARAMETERS(2, 4), {COMBA_SHAPE(2, 2, 2, 4)}}},
    {.name = "chunks, packed",
     .attributes = MODE(CHUNK),
     .input = {{COMBA_SHAPE(1, 135, 3)}, PARAMETERS(3, 2), {COMBA_SHAPE(4, 3, 2, 2)}, PACKED}},
    {.name = "token by token, packed",
     .attributes = MODE(RECURRENT),
     .input = {{COMBA_SHAPE(1, 135, 3)}, PARAMETERS(3, 2), {COMBA_SHAPE(4, 3, 2, 2)}, PACKED}},
    {.name = "more states than lanes of a warp", .input = {{COMBA_SHAPE(1, 70, 2)}, PARAMETERS(2, 37)}},
    {.name = "one token, one state", .input = {{COMBA_SHAPE(3, 1, 4)}, PARAMETERS(4, 1), {COMBA_SHAPE(3, 4, 2, 1)}}},
    {.name = "2 x 1024, 256 channels of 32",
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 256)}, PARAMETERS(256, 32)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_s4d) = {
    .name = "s4d",
    .formula = "s_t = a s_{t-1} + u_t, y_t = 2 Re sum w s_t, a = exp(dt A), w = C (a - 1) / A",
    .inputs = INPUTS,
    .outputs = 2,
    .optional_inputs = 1u << INITIAL_STATE | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_STATE,
                    COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_s4d_attributes),
    .backward_inputs = 1u << U | 1u << LOG_DT | 1u << LOG_RATE | 1u << FREQUENCY | 1u << C | 1u << CU_SEQLENS,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
