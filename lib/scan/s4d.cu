/* s_t = a s_{t-1} + u_t,  y_t = 2 Re sum_m w_m s_{t,m}, M complex states a channel: token by token in both modes, formulas and
 * gradients as s4d.c has them.
 *
 * A warp a sequence and channel, a lane a state (more than 32 take turns), with the tokens of a chunk in registers: lane l holds
 * tokens l and l + 32. Complex vectors are M real parts, then M imaginary ones. Saved: the states at the chunks' starts. */
#include <cuComplex.h>

#include "ops/cuda_rows.h"
#include "ops/cuda_sequences.h"

enum { U, LOG_DT, LOG_RATE, FREQUENCY, C, INITIAL_STATE, CU_SEQLENS };
enum { Y, FINAL_STATE };
enum { CHUNK = 64, WARPS = 2 /* a block of the backward pass */ };

/* Workspace: a and w (d, 4 M); backward then p, da and dw of each sequence (N, d, 6 M). */
static comba_status infer(comba_signature *s) {
  const int64_t states = comba_shape_elements(&s->input[LOG_RATE]);
  s->forward_workspace = 4 * states;
  s->backward_workspace = 4 * states + 3 * comba_shape_elements(&s->output[FINAL_STATE]);
  return COMBA_OK;
}

typedef cuDoubleComplex complex;

struct parameters {
  int64_t d, M;
  const float *log_dt, *log_rate, *frequency, *C;
};

/* a and w of one state, in double: their powers reach far */
struct discrete {
  complex A, C, a, quotient, w; /* quotient: (a - 1) / A */
  double dt;
};

static __device__ discrete discretize(const parameters &p, int64_t at) {
  discrete x;
  x.dt = exp((double)p.log_dt[at / p.M]);
  x.A = make_cuDoubleComplex(-exp((double)p.log_rate[at]), p.frequency[at]);
  x.C = make_cuDoubleComplex(p.C[2 * at], p.C[2 * at + 1]);
  const double size = exp(x.dt * x.A.x), angle = x.dt * x.A.y;
  x.a = make_cuDoubleComplex(size * cos(angle), size * sin(angle));
  x.quotient = cuCdiv(make_cuDoubleComplex(x.a.x - 1, x.a.y), x.A);
  x.w = cuCmul(x.C, x.quotient);
  return x;
}

static parameters parameters_of(const comba_call *call) {
  const comba_shape *rate = &call->input[LOG_RATE].shape;
  return {rate->size[0],
          rate->size[1],
          (const float *)call->input[LOG_DT].data,
          (const float *)call->input[LOG_RATE].data,
          (const float *)call->input[FREQUENCY].data,
          (const float *)call->input[C].data};
}

/* Of each channel a (2 M), then w (2 M) with the 2 of the conjugates. */
static void discretize_all(const parameters &p, float *steps) {
  comba_each(p.d * p.M, [=] __device__(int64_t at) {
    const discrete x = discretize(p, at);
    float *to = steps + at / p.M * 4 * p.M + at % p.M;
    to[0] = (float)x.a.x;
    to[p.M] = (float)x.a.y;
    to[2 * p.M] = (float)(2 * x.w.x);
    to[3 * p.M] = (float)(2 * x.w.y);
  });
}

/* Number m of a complex vector; 0 beyond its end */
static __device__ float2 get(const float *vector, int64_t M, int64_t m) {
  return m < M ? make_float2(vector[m], vector[M + m]) : make_float2(0, 0);
}
static __device__ void set(float *vector, int64_t M, int64_t m, float2 value) {
  if (m >= M) return;
  vector[m] = value.x;
  vector[M + m] = value.y;
}
/* x y + z */
static __device__ float2 multiply_add(float2 x, float2 y, float2 z) {
  return make_float2(x.x * y.x - x.y * y.y + z.x, x.x * y.y + x.y * y.x + z.y);
}

/* Tokens of a chunk that a lane holds. */
struct tokens {
  float low, high;

  __device__ float at(int i) const {
    return __shfl_sync(~0u, i < 32 ? low : high, i % 32);
  }
  __device__ void add(int i, int64_t lane, float value) {
    if (i % 32 != lane) return;
    if (i < 32)
      low += value;
    else
      high += value;
  }
};

/* `from`: the chunk's first token, of one channel; count of them, d apart; NULL: zeros. */
template <class T> static __device__ tokens load_tokens(const T *from, int64_t d, int count, int64_t lane) {
  return {from && lane < count ? load(from + lane * d) : 0,
          from && lane + 32 < count ? load(from + (lane + 32) * d) : 0};
}

struct chunks {
  cuda_sequences sequences;

  __device__ int64_t of(int64_t length) const {
    return (length + CHUNK - 1) / CHUNK;
  }
  /* Where the saved states of sequence n begin, as scan_state_slot has it. */
  __device__ int64_t slot(int64_t n) const {
    return sequences.cu_seqlens ? sequence_start(sequences, n) / CHUNK + n : n * of(sequences.length);
  }
};

template <class T> static void forward(const comba_call *call) {
  const parameters p = parameters_of(call);
  const chunks chunk = {cuda_sequences_of(&call->input[U], &call->input[CU_SEQLENS])};
  const int64_t d = p.d, M = p.M;
  const T *u = (const T *)call->input[U].data;
  const float *initial = (const float *)call->input[INITIAL_STATE].data;
  T *y = (T *)call->output[Y].data;
  float *states = (float *)call->output[FINAL_STATE].data, *saved = (float *)call->saved[0].data;
  float *steps = (float *)call->workspace;
  discretize_all(p, steps);
  comba_each_row(chunk.sequences.count * d, [=] __device__(int64_t task, int64_t lane) {
    const int64_t n = task / d, channel = task % d, end = sequence_start(chunk.sequences, n + 1);
    const float *a = steps + channel * 4 * M, *w = a + 2 * M;
    float *state = states + task * 2 * M;
    int64_t slot = chunk.slot(n);
    for (int64_t m = lane; m < M; m += 32)
      set(state, M, m, initial ? get(initial + task * 2 * M, M, m) : make_float2(0, 0));
    for (int64_t start = sequence_start(chunk.sequences, n); start < end; start += CHUNK, slot++) {
      const int count = (int)min((int64_t)CHUNK, end - start);
      const tokens input = load_tokens(u + start * d + channel, d, count, lane);
      tokens output = {0, 0};
      for (int64_t m = lane; m - lane < M; m += 32) {
        const float2 step = get(a, M, m), weight = get(w, M, m);
        float2 s = get(state, M, m);
        if (saved) set(saved + (slot * d + channel) * 2 * M, M, m, s);
        for (int i = 0; i < count; i++) {
          s = multiply_add(step, s, make_float2(input.at(i), 0));
          output.add(i, lane, warp_sum(weight.x * s.x - weight.y * s.y));
        }
        set(state, M, m, s);
      }
      if (lane < count) store(y + (start + lane) * d + channel, output.low);
      if (lane + 32 < count) store(y + (start + lane + 32) * d + channel, output.high);
    }
  });
}

template <class T> struct reverse {
  chunks chunk;
  int64_t d, M;
  const T *u, *dy;
  const float *steps, *saved, *final_gradient;
  T *du;
  float *initial_gradient, *sums; /* sums: p, da and dw of each sequence and channel, 2 M each */
  bool add_u, add_initial;
};

/* One chunk and the states m, of which a lane has one: p comes from the tokens after it, and is left for those before it. `history`:
 * of each token the state before it; a lane reads what itself has written. */
template <class T>
static __device__ void reverse_chunk(const reverse<T> &r, int64_t channel, int64_t slot, int64_t m, int64_t lane,
                                     int count, const tokens &input, const tokens &slope, float2 (*history)[32],
                                     float *sums, tokens *du) {
  const int64_t M = r.M;
  const float2 a = get(r.steps + channel * 4 * M, M, m), w = get(r.steps + channel * 4 * M + 2 * M, M, m);
  float2 s = get(r.saved + (slot * r.d + channel) * 2 * M, M, m);
  float2 p = get(sums, M, m), da = get(sums + 2 * M, M, m), dw = get(sums + 4 * M, M, m);
  for (int i = 0; i < count; i++) {
    history[i][lane] = s;
    s = multiply_add(a, s, make_float2(input.at(i), 0));
  }
  for (int i = count - 1; i >= 0; i--) {
    const float dy = slope.at(i);
    p = make_float2(p.x + dy * w.x, p.y + dy * w.y);
    dw = make_float2(dw.x + 2 * dy * s.x, dw.y + 2 * dy * s.y);
    s = history[i][lane];
    da = multiply_add(p, s, da);
    du->add(i, lane, warp_sum(p.x));
    p = multiply_add(a, p, make_float2(0, 0));
  }
  set(sums, M, m, p);
  set(sums + 2 * M, M, m, da);
  set(sums + 4 * M, M, m, dw);
}

template <class T> static __global__ void reverse_sequences(reverse<T> r) {
  __shared__ float2 history[WARPS][CHUNK][32];
  const int64_t task = (int64_t)blockIdx.x * WARPS + threadIdx.y, lane = threadIdx.x;
  if (task >= r.chunk.sequences.count * r.d) return;
  const int64_t n = task / r.d, channel = task % r.d, d = r.d, M = r.M;
  const int64_t first = sequence_start(r.chunk.sequences, n), end = sequence_start(r.chunk.sequences, n + 1);
  const int64_t slot = r.chunk.slot(n);
  float *sums = r.sums + task * 6 * M;
  for (int64_t m = lane; m < M; m += 32) {
    const float2 p = r.final_gradient ? get(r.final_gradient + task * 2 * M, M, m) : make_float2(0, 0);
    set(sums, M, m, make_float2(p.x, -p.y)); /* Re p ds has the imaginary part with a minus */
    set(sums + 2 * M, M, m, make_float2(0, 0));
    set(sums + 4 * M, M, m, make_float2(0, 0));
  }
  for (int64_t number = r.chunk.of(end - first) - 1; number >= 0; number--) {
    const int64_t start = first + number * CHUNK, at = start * d + channel;
    const int count = (int)min((int64_t)CHUNK, end - start);
    const tokens input = load_tokens(r.u + at, d, count, lane);
    const tokens slope = load_tokens(r.dy ? r.dy + at : NULL, d, count, lane);
    tokens du = {0, 0};
    for (int64_t m = lane; m - lane < M; m += 32)
      reverse_chunk(r, channel, slot + number, m, lane, count, input, slope, history[threadIdx.y], sums, &du);
    if (r.du && lane < count) put(r.du + at + lane * d, du.low, r.add_u);
    if (r.du && lane + 32 < count) put(r.du + at + (lane + 32) * d, du.high, r.add_u);
  }
  for (int64_t m = lane; r.initial_gradient && m < M; m += 32) {
    float *to = r.initial_gradient + task * 2 * M + m;
    put(to, sums[m], r.add_initial);
    put(to + M, -sums[M + m], r.add_initial);
  }
}

/* From the sums of da and dw (with respect to w without its 2) over sequences to the parameters. A warp a channel. */
static void parameter_gradients(const comba_call *call, const parameters &p, int64_t sequences, const float *sums) {
  float *dlog_dt = (float *)call->input_gradient[LOG_DT].data, *dC = (float *)call->input_gradient[C].data;
  float *dlog_rate = (float *)call->input_gradient[LOG_RATE].data;
  float *dfrequency = (float *)call->input_gradient[FREQUENCY].data;
  const bool add_dt = call->accumulate[LOG_DT], add_rate = call->accumulate[LOG_RATE], add_C = call->accumulate[C];
  const bool add_frequency = call->accumulate[FREQUENCY];
  if (!dlog_dt && !dlog_rate && !dfrequency && !dC) return;
  comba_each_row(p.d, [=] __device__(int64_t channel, int64_t lane) {
    double to_log_dt = 0;
    for (int64_t m = lane; m < p.M; m += 32) {
      const int64_t at = channel * p.M + m;
      const discrete x = discretize(p, at);
      complex da = {0, 0}, dw = {0, 0};
      for (int64_t n = 0; n < sequences; n++) {
        const float *from = sums + (n * p.d + channel) * 6 * p.M + 2 * p.M + m;
        da = make_cuDoubleComplex(da.x + from[0], da.y + from[p.M]);
        dw = make_cuDoubleComplex(dw.x + from[2 * p.M], dw.y + from[3 * p.M]);
      }
      da = cuCadd(da, cuCdiv(cuCmul(dw, x.C), x.A));
      const complex from_a = cuCmul(da, x.a), from_w = cuCdiv(cuCmul(dw, x.w), x.A), to_C = cuCmul(dw, x.quotient);
      const complex to_A = make_cuDoubleComplex(x.dt * from_a.x - from_w.x, x.dt * from_a.y - from_w.y);
      if (dC) put(dC + 2 * at, (float)to_C.x, add_C);
      if (dC) put(dC + 2 * at + 1, (float)-to_C.y, add_C);
      if (dlog_rate) put(dlog_rate + at, (float)(to_A.x * x.A.x), add_rate);
      if (dfrequency) put(dfrequency + at, (float)-to_A.y, add_frequency);
      to_log_dt += cuCmul(from_a, x.A).x * x.dt;
    }
    for (int offset = 16; offset; offset /= 2) to_log_dt += __shfl_xor_sync(~0u, to_log_dt, offset);
    if (dlog_dt && !lane) put(dlog_dt + channel, (float)to_log_dt, add_dt);
  });
}

template <class T> static void backward(const comba_call *call) {
  const parameters p = parameters_of(call);
  const chunks chunk = {cuda_sequences_of(&call->input[U], &call->input[CU_SEQLENS])};
  float *steps = (float *)call->workspace, *sums = steps + 4 * p.d * p.M;
  const reverse<T> r = {chunk,
                        p.d,
                        p.M,
                        (const T *)call->input[U].data,
                        (const T *)call->output_gradient[Y].data,
                        steps,
                        (const float *)call->saved[0].data,
                        (const float *)call->output_gradient[FINAL_STATE].data,
                        (T *)call->input_gradient[U].data,
                        (float *)call->input_gradient[INITIAL_STATE].data,
                        sums,
                        call->accumulate[U],
                        call->accumulate[INITIAL_STATE]};
  discretize_all(p, steps);
  reverse_sequences<<<(unsigned)((chunk.sequences.count * p.d + WARPS - 1) / WARPS), dim3(32, WARPS), 0,
                      comba_cuda_stream()>>>(r);
  comba_cuda_note(cudaGetLastError(), "s4d, backward");
  parameter_gradients(call, p, chunk.sequences.count, sums);
}

COMBA_CUDA_ROW(s4d, infer);
