/* Operators whose results for a token need nothing of other tokens: what lies between two products of a step of decoding. A block
 * computes some rows, or some values, of a token; where an operator reads of another's result no more than the rows or values of the same
 * places, the block needs nothing of other blocks. */
#ifndef COMBA_OPS_CUDA_TOKEN_STEP_H
#define COMBA_OPS_CUDA_TOKEN_STEP_H

#include "core/cuda_grid_wait.h"
#include "ops/cuda_activation.h"
#include "ops/cuda_convolution_token.h"
#include "ops/cuda_gates.h"
extern "C" {
#include "ops/closed_loop.h"
}
#include "ops/cuda_rotary.h"

enum { AFTER_NORM = 1, P_NORMALIZE = 2, FEEDBACK_DECAY = 4 }; /* choices of closed_loop */
enum { TAPS = 7, SILU = 8 };                                  /* of a convolution */

/* An operator's work for a token: `rows` rows of d values, by rows or by values */
typedef struct token_step {
  const void *in[4];
  void *out[3];
  comba_op_id op;
  bool by_rows, waits; /* waits: for the block's threads, whose results it reads */
  int rows, d;
  double number; /* epsilon, a factor, or rotary's step */
  int choice;    /* of a function; taps of a convolution, and whether silu follows */
  int turns;     /* rows take turns with so many groups of weights; positions after which rotary begins anew */
  int thread;    /* of a block, that has the first value: steps of one depth go to different ones */
} token_step;

/* A block's part of a step: so many rows, or values, of all that the tokens have, from `first` on. */
struct token_part {
  int64_t first;
  int count;
};

/* ---- On the device --------------------------------------------------------------------------------------------------- */

/* The sum over `warps` neighbouring warps, a power of two, in each of their threads. All workers of a block come here. */
static __device__ inline float team_sum(float value, int warps) {
  __shared__ float part[STAGE_WARPS];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  value = warp_sum(value);
  if (warps == 1) return value;
  wait_for_workers();
  if (!lane) part[warp] = value;
  wait_for_workers();
  return warp_sum(lane < warps ? part[warp / warps * warps + lane] : 0);
}

/* A row's threads, of which each takes every `threads`-th value from `thread` on: as many as are left for each row where a block has
 * several. */
struct row_team {
  int warps, thread, threads;
  bool there; /* not past the last row: then it computes along, and writes nothing */

  __device__ float sum(float value) const {
    return team_sum(value, warps);
  }
};

/* f(team, row) for the rows of the part; all workers come to each f. */
template <class F> static __device__ inline void each_row(const token_part &part, F f) {
  int together = 1;
  while (together < part.count && together < STAGE_WARPS) together *= 2;
  const int warps = STAGE_WARPS / together, threads = warps * 32;
  for (int base = 0; base < part.count; base += together) {
    const int row = base + threadIdx.x / threads;
    const row_team team = {warps, (int)threadIdx.x % threads, threads, row < part.count};
    f(team, part.first + min(row, part.count - 1));
  }
}

/* f(i, number of value i within its token) for the values of the part */
template <class F> static __device__ inline void each_value(const token_step &s, const token_part &part, F f) {
  const int thread = (int)(threadIdx.x + STAGE_WORKERS - s.thread) % STAGE_WORKERS, all = s.rows * s.d;
  for (int i = thread; i < part.count; i += STAGE_WORKERS) f(part.first + i, (int)((part.first + i) % all));
}

/* value(j) times 1 / sqrt(the sum of squares times `share` + epsilon) for a row of d, given to result(j, .) */
template <class V, class R>
static __device__ inline void scale_row(const token_step &s, const row_team &team, float share, V value, R result) {
  float squares = 0;
  for (int j = team.thread; j < s.d; j += team.threads) squares += value(j) * value(j);
  const float r = rsqrtf(team.sum(squares) * share + (float)s.number);
  for (int j = team.thread; j < s.d && team.there; j += team.threads) result(j, value(j) * r);
}

template <class T>
static __device__ inline void run_closed_loop(const token_step &s, const row_team &team, int64_t h, int64_t at) {
  const T *q = (const T *)s.in[0] + at, *k = (const T *)s.in[1] + at;
  const float *decay = (const float *)s.in[2], *correction = (const float *)s.in[3];
  const comba_closed_loop_attributes attributes = {s.number, (s.choice & AFTER_NORM) != 0,
                                                   (s.choice & P_NORMALIZE) != 0, (s.choice & FEEDBACK_DECAY) != 0};
  const comba_loop loop = comba_loop_of(&attributes, decay ? sigmoid(decay[h]) : 1, correction ? correction[h] : 0);
  float kk = 0, ww = 0;
  for (int j = team.thread; j < s.d; j += team.threads) {
    const float key = load(k + j), w = load(q + j) - loop.c * key;
    kk += key * key;
    ww += w * w;
  }
  kk = team.sum(kk);
  ww = team.sum(ww);
  const comba_loop_forward by = comba_loop_run(&loop, kk, ww);
  for (int j = team.thread; j < s.d && team.there; j += team.threads) {
    const float query = load(q + j), key = load(k + j);
    store((T *)s.out[0] + at + j, by.q_q * query + by.q_k * key);
    store((T *)s.out[1] + at + j, by.k_k * key);
    store((T *)s.out[2] + at + j, by.p_k * key);
  }
}

template <class T> static __device__ inline convolution_token<T> convolution_of(const token_step &s) {
  return {(int64_t)s.rows * s.d,  s.choice & TAPS,        (s.choice & SILU) != 0,
          (const T *)s.in[0],     (const float *)s.in[1], (const float *)s.in[2],
          (const float *)s.in[3], (T *)s.out[0],          (float *)s.out[1]};
}

/* A head of a convolution, divided by its length. Each value is computed again once that is known. */
template <class T> static __device__ inline void convolve_head(const token_step &s, const row_team &team, int64_t row) {
  const convolution_token<T> token = convolution_of<T>(s);
  const int64_t sequence = row / s.rows, first = row % s.rows * s.d;
  float input[CONVOLUTION_TOKEN_TAPS], squares = 0;
  for (int j = team.thread; j < s.d; j += team.threads) {
    const float z = token.value(sequence, first + j, input);
    squares += z * z;
  }
  const float r = rsqrtf(team.sum(squares) + (float)s.number);
  for (int j = team.thread; j < s.d && team.there; j += team.threads) {
    store(token.y + row * s.d + j, r * token.value(sequence, first + j, input));
    token.keep(sequence, first + j, input);
  }
}

/* Pairs of a head, whose channels are half of the head apart, or neighbours (`choice`) */
template <class T>
static __device__ inline void turn_head(const token_step &s, const row_team &team, const T *x, T *y) {
  const int32_t *position = (const int32_t *)s.in[1];
  const int64_t n = position ? *position : 0;
  const int apart = s.choice ? 1 : s.d / 2, stride = s.choice ? 2 : 1;
  for (int j = team.thread; j < s.d / 2 && team.there; j += team.threads) {
    const float2 angle = cosine_and_sine(s.number, s.turns ? n % s.turns : n, j);
    const float one = load(x + j * stride), other = load(x + j * stride + apart);
    store(y + j * stride, one * angle.x - other * angle.y);
    store(y + j * stride + apart, other * angle.x + one * angle.y);
  }
}

template <class T> static __device__ inline void run_by_rows(const token_step &s, const token_part &part) {
  const T *x = (const T *)s.in[0], *other = (const T *)s.in[1];
  const float *weight = (const float *)s.in[2];
  T *y = (T *)s.out[0], *sum = (T *)s.out[1];
  each_row(part, [&](const row_team &team, int64_t row) {
    const int64_t at = row * s.d;
    const float *w = weight ? weight + row % s.turns * s.d : NULL;
    switch (s.op) {
    case COMBA_OP_closed_loop: run_closed_loop<T>(s, team, row % s.rows, at); break;
    case COMBA_OP_rotary: turn_head(s, team, x + at, y + at); break;
    case COMBA_OP_short_convolution: convolve_head<T>(s, team, row); break;
    case COMBA_OP_l2_norm:
      scale_row(
          s, team, 1, [&](int j) { return load(x + at + j); }, [&](int j, float v) { store(y + at + j, v); });
      break;
    case COMBA_OP_gated_rms_norm:
      scale_row(
          s, team, 1 / (float)s.d, [&](int j) { return load(x + at + j); },
          [&](int j, float v) {
            store(y + at + j, v * w[j] * activation_value((comba_function)s.choice, load(other + at + j)));
          });
      break;
    default: /* rms_norm, `other` the residual, `sum` what both come to, where it is wanted */
      scale_row(
          s, team, 1 / (float)s.d, [&](int j) { return load(x + at + j) + (other ? load(other + at + j) : 0); },
          [&](int j, float v) { store(y + at + j, v * (w ? w[j] : 1)); });
      for (int j = team.thread; j < s.d && team.there && sum; j += team.threads)
        store(sum + at + j, load(x + at + j) + (other ? load(other + at + j) : 0));
    }
  });
}

template <class T> static __device__ inline void run_by_values(const token_step &s, const token_part &part) {
  const T *x = (const T *)s.in[0], *other = (const T *)s.in[1];
  const float *heads = (const float *)s.in[2]; /* a number a head */
  T *y = (T *)s.out[0];
  switch (s.op) {
  case COMBA_OP_add: each_value(s, part, [&](int64_t i, int) { store(y + i, load(x + i) + load(other + i)); }); break;
  case COMBA_OP_swiglu:
    each_value(s, part, [&](int64_t i, int) { store(y + i, load(x + i) * sigmoid(load(x + i)) * load(other + i)); });
    break;
  case COMBA_OP_activation:
    each_value(s, part, [&](int64_t i, int) {
      store(y + i, (float)s.number * activation_value((comba_function)s.choice, load(x + i)));
    });
    break;
  case COMBA_OP_sigmoid_gate:
    each_value(s, part, [&](int64_t i, int) { ((float *)y)[i] = (float)s.number * precise_sigmoid(load(x + i)); });
    break;
  case COMBA_OP_widen: each_value(s, part, [&](int64_t i, int) { ((float *)y)[i] = load(x + i); }); break;
  case COMBA_OP_narrow: each_value(s, part, [&](int64_t i, int) { store(y + i, ((const float *)x)[i]); }); break;
  case COMBA_OP_head_skip:
    each_value(s, part, [&](int64_t i, int j) { store(y + i, load(x + i) + heads[j / s.d] * load(other + i)); });
    break;
  case COMBA_OP_decay_gate:
    each_value(s, part, [&](int64_t i, int h) {
      ((float *)y)[i] =
          decay_gate_value((comba_decay_kind)s.choice, load(x + i), (const float *)s.in[1] + h, heads + h);
    });
    break;
  default: { /* short_convolution */
    const convolution_token<T> token = convolution_of<T>(s);
    each_value(s, part, [&](int64_t i, int c) { token.pass(i / token.channels, c); });
  }
  }
}

/* ---- On the host ----------------------------------------------------------------------------------------------------- */

/* Inputs by place, -1 for none: most operators have theirs in the order of ops.h */
static void take_inputs(token_step *s, const comba_call *call, int a, int b, int c, int d) {
  const int places[4] = {a, b, c, d};
  for (int i = 0; i < 4; i++) s->in[i] = places[i] < 0 ? NULL : call->input[places[i]].data;
}

static bool takes_convolution(const comba_call *call) {
  enum { X, WEIGHT, CU_SEQLENS = 4 };
  return call->input[X].shape.size[1] == 1 && !call->input[CU_SEQLENS].data &&
         call->input[WEIGHT].shape.size[2] <= CONVOLUTION_TOKEN_TAPS;
}

/* Whether the operator is one of these; fills in its step but for `waits` and `thread`. */
static bool describe_step(comba_op_id op, const comba_call *call, int64_t tokens, token_step *s) {
  const comba_shape *x = &call->input[0].shape;
  const int64_t values = comba_shape_elements(x) / tokens, d = x->size[x->rank - 1];
  if (values > 1 << 24) return false;
  *s = {};
  s->op = op;
  s->rows = (int)(values / d);
  s->d = (int)d;
  s->turns = 1;
  for (int i = 0; i < 3; i++) s->out[i] = call->output[i].data;
  take_inputs(s, call, 0, 1, -1, -1);
  switch (op) {
  case COMBA_OP_widen:
  case COMBA_OP_narrow:
  case COMBA_OP_swiglu: break;
  case COMBA_OP_add: return comba_shape_equal(x, &call->input[1].shape);
  case COMBA_OP_activation: {
    const comba_activation_attributes *a = (const comba_activation_attributes *)call->attributes;
    s->choice = a->function;
    s->number = a->scale == 0 ? 1 : a->scale;
    break;
  }
  case COMBA_OP_sigmoid_gate: s->number = ((const comba_sigmoid_gate_attributes *)call->attributes)->scale; break;
  case COMBA_OP_l2_norm:
    s->by_rows = true;
    s->number = ((const comba_norm_attributes *)call->attributes)->epsilon;
    break;
  case COMBA_OP_rms_norm:
    s->by_rows = true;
    s->number = ((const comba_norm_attributes *)call->attributes)->epsilon;
    take_inputs(s, call, 0, 2, 1, -1);
    if (s->in[2]) s->turns = (int)(call->input[1].shape.size[0] / d);
    break;
  case COMBA_OP_gated_rms_norm: {
    const comba_gated_rms_norm_attributes *a = (const comba_gated_rms_norm_attributes *)call->attributes;
    s->by_rows = true;
    s->number = a->epsilon;
    s->choice = a->gate;
    take_inputs(s, call, 0, 1, 2, -1);
    s->turns = (int)(call->input[2].shape.size[0] / d);
    break;
  }
  case COMBA_OP_closed_loop: {
    const comba_closed_loop_attributes *a = (const comba_closed_loop_attributes *)call->attributes;
    s->by_rows = true;
    s->number = a->epsilon;
    s->choice = a->after_norm * AFTER_NORM | a->p_normalize * P_NORMALIZE | a->feedback_decay * FEEDBACK_DECAY;
    take_inputs(s, call, 0, 1, 2, 3);
    break;
  }
  case COMBA_OP_rotary: {
    enum { CU_SEQLENS = 2 };
    const comba_rotary_attributes *a = (const comba_rotary_attributes *)call->attributes;
    s->by_rows = true;
    s->number = rotary_step(a, d);
    s->choice = a->interleaved;
    s->turns = (int)a->period;
    return x->size[1] == 1 && !call->input[CU_SEQLENS].data && a->period <= INT32_MAX;
  }
  case COMBA_OP_head_skip: take_inputs(s, call, 0, 1, 2, -1); break;
  case COMBA_OP_decay_gate:
    take_inputs(s, call, 0, 1, 2, -1);
    s->choice = ((const comba_decay_gate_attributes *)call->attributes)->kind;
    break;
  case COMBA_OP_short_convolution: {
    const comba_short_convolution_attributes *a = (const comba_short_convolution_attributes *)call->attributes;
    take_inputs(s, call, 0, 1, 2, 3);
    s->choice = (int)call->input[1].shape.size[2] | (a->silu ? SILU : 0);
    s->number = a->epsilon;
    if (a->head) {
      s->by_rows = true;
      s->rows = (int)(d / a->head);
      s->d = (int)a->head;
    }
    return takes_convolution(call);
  }
  default: return false;
  }
  return true;
}

#endif
