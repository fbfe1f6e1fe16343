/* What lies between two products of a step of decoding, in one launch: operators whose results for a token need nothing of other
 * tokens. The blocks of a token run one operator after another, those of one depth beside one another, and wait for all of the token
 * before the next depth. */
#include "ops/cuda_together.h"

#include "ops/cuda_activation.h"
#include "ops/cuda_convolution_token.h"
#include "ops/cuda_gates.h"
extern "C" {
#include "ops/closed_loop.h"
}

enum { AFTER_NORM = 1, P_NORMALIZE = 2, FEEDBACK_DECAY = 4 }; /* choices of closed_loop */
enum { THREADS = 512, MOST_TOKENS = 128, MOST_STEPS = 24 };

/* An operator's work for a token: `rows` rows of d values, by rows or by values */
typedef struct token_step {
  comba_op_id op;
  bool waits, by_rows;
  int block; /* at which of the token's blocks its work begins: steps of one depth go to different ones */
  int rows, d;
  const void *in[4];
  void *out[3];
  float number; /* epsilon, or a factor */
  int choice;   /* of a function; taps of a convolution */
  int turns;    /* rows take turns with so many groups of weights; likewise heads */
} token_step;

typedef struct token_program {
  int tokens, steps;
  token_step step[MOST_STEPS];
} token_program;

/* ---- On the device --------------------------------------------------------------------------------------------------- */

/* A block's part of a token: the numbers of both are those of the step's work, which is dealt from `step.block` on. */
struct token_part {
  int64_t token;
  int block, blocks;

  /* f(i) for the values i of the token */
  template <class F> __device__ void each(const token_step &s, F f) const {
    const int count = s.rows * s.d;
    for (int i = block * THREADS + threadIdx.x; i < count; i += blocks * THREADS) f(token * count + i, i);
  }
  /* f(row, number of the row's first value) by the whole block */
  template <class F> __device__ void each_row(const token_step &s, F f) const {
    for (int i = block; i < s.rows; i += blocks) f(token * s.rows + i, (token * s.rows + i) * s.d);
  }
};

/* value(j) times 1 / sqrt(the sum of squares times `share` + epsilon) for a row of d, given to result(j, .) */
template <class V, class R> static __device__ void scale_row(const token_step &s, float share, V value, R result) {
  float squares = 0;
  for (int j = threadIdx.x; j < s.d; j += THREADS) squares += value(j) * value(j);
  const float r = rsqrtf(block_sum(squares) * share + s.number);
  for (int j = threadIdx.x; j < s.d; j += THREADS) result(j, value(j) * r);
}

template <class T> static __device__ void run_closed_loop(const token_step &s, int64_t h, int64_t at) {
  const T *q = (const T *)s.in[0] + at, *k = (const T *)s.in[1] + at;
  const float *decay = (const float *)s.in[2], *correction = (const float *)s.in[3];
  const comba_closed_loop_attributes attributes = {s.number, (s.choice & AFTER_NORM) != 0,
                                                   (s.choice & P_NORMALIZE) != 0, (s.choice & FEEDBACK_DECAY) != 0};
  const comba_loop loop = comba_loop_of(&attributes, decay ? sigmoid(decay[h]) : 1, correction ? correction[h] : 0);
  float kk = 0, ww = 0;
  for (int j = threadIdx.x; j < s.d; j += THREADS) {
    const float key = load(k + j), w = load(q + j) - loop.c * key;
    kk += key * key;
    ww += w * w;
  }
  kk = block_sum(kk);
  ww = block_sum(ww);
  const comba_loop_forward by = comba_loop_run(&loop, kk, ww);
  for (int j = threadIdx.x; j < s.d; j += THREADS) {
    const float query = load(q + j), key = load(k + j);
    store((T *)s.out[0] + at + j, by.q_q * query + by.q_k * key);
    store((T *)s.out[1] + at + j, by.k_k * key);
    store((T *)s.out[2] + at + j, by.p_k * key);
  }
}

template <class T> static __device__ void run_by_rows(const token_step &s, const token_part &part) {
  const T *x = (const T *)s.in[0], *other = (const T *)s.in[1];
  const float *weight = (const float *)s.in[2];
  T *y = (T *)s.out[0], *sum = (T *)s.out[1];
  part.each_row(s, [&](int64_t row, int64_t at) {
    const float *w = weight ? weight + row % s.turns * s.d : NULL;
    switch (s.op) {
    case COMBA_OP_closed_loop: run_closed_loop<T>(s, row % s.rows, at); break;
    case COMBA_OP_l2_norm:
      scale_row(
          s, 1, [&](int j) { return load(x + at + j); }, [&](int j, float v) { store(y + at + j, v); });
      break;
    case COMBA_OP_gated_rms_norm:
      scale_row(
          s, 1 / (float)s.d, [&](int j) { return load(x + at + j); },
          [&](int j, float v) {
            store(y + at + j, v * w[j] * activation_value((comba_function)s.choice, load(other + at + j)));
          });
      break;
    default: /* rms_norm, `other` the residual */
      scale_row(
          s, 1 / (float)s.d, [&](int j) { return load(x + at + j) + (other ? load(other + at + j) : 0); },
          [&](int j, float v) { store(y + at + j, v * (w ? w[j] : 1)); });
      for (int j = threadIdx.x; j < s.d; j += THREADS)
        store(sum + at + j, load(x + at + j) + (other ? load(other + at + j) : 0));
    }
  });
}

template <class T> static __device__ void run_by_values(const token_step &s, const token_part &part) {
  const T *x = (const T *)s.in[0], *other = (const T *)s.in[1];
  const float *heads = (const float *)s.in[2]; /* a number a head */
  T *y = (T *)s.out[0];
  switch (s.op) {
  case COMBA_OP_add: part.each(s, [&](int64_t i, int) { store(y + i, load(x + i) + load(other + i)); }); break;
  case COMBA_OP_swiglu:
    part.each(s, [&](int64_t i, int) { store(y + i, load(x + i) * sigmoid(load(x + i)) * load(other + i)); });
    break;
  case COMBA_OP_activation:
    part.each(
        s, [&](int64_t i, int) { store(y + i, s.number * activation_value((comba_function)s.choice, load(x + i))); });
    break;
  case COMBA_OP_sigmoid_gate:
    part.each(s, [&](int64_t i, int) { ((float *)y)[i] = s.number * precise_sigmoid(load(x + i)); });
    break;
  case COMBA_OP_widen: part.each(s, [&](int64_t i, int) { ((float *)y)[i] = load(x + i); }); break;
  case COMBA_OP_narrow: part.each(s, [&](int64_t i, int) { store(y + i, ((const float *)x)[i]); }); break;
  case COMBA_OP_head_skip:
    part.each(s, [&](int64_t i, int j) { store(y + i, load(x + i) + heads[j / s.d] * load(other + i)); });
    break;
  case COMBA_OP_decay_gate:
    part.each(s, [&](int64_t i, int h) {
      ((float *)y)[i] =
          decay_gate_value((comba_decay_kind)s.choice, load(x + i), (const float *)s.in[1] + h, heads + h);
    });
    break;
  default: { /* short_convolution */
    const convolution_token<T> token = {
        s.d, s.choice, s.number != 0, x, (const float *)s.in[1], heads, (const float *)s.in[3], y, (float *)s.out[1]};
    part.each(s, [&](int64_t, int c) { token.pass(part.token, c); });
  }
  }
}

/* For all of a token's blocks, which are a cluster */
static __device__ void wait_for_token(int blocks) {
  __syncthreads();
#if __CUDA_ARCH__ >= 900
  if (blocks > 1) asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

template <class T>
static __global__ void __launch_bounds__(THREADS, 2) run_steps(const __grid_constant__ token_program p) {
  const int blocks = gridDim.x / p.tokens, block = blockIdx.x % blocks;
  comba_chain_next();
  comba_chain_wait();
  for (int i = 0; i < p.steps; i++) {
    const token_step &s = p.step[i];
    const token_part part = {blockIdx.x / blocks, (block + blocks - s.block % blocks) % blocks, blocks};
    if (s.waits) wait_for_token(blocks);
    if (s.by_rows)
      run_by_rows<T>(s, part);
    else
      run_by_values<T>(s, part);
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

/* Whether the forward is one of these; fills in its step but for `waits` and `block`. */
static bool describe(const comba_forward *forward, int64_t tokens, token_step *s) {
  const comba_call *call = forward->call;
  const comba_shape *x = &call->input[0].shape;
  const int64_t values = comba_shape_elements(x) / tokens, d = x->size[x->rank - 1];
  *s = {};
  s->op = forward->id;
  s->rows = (int)(values / d);
  s->d = (int)d;
  s->turns = 1;
  for (int i = 0; i < 3; i++) s->out[i] = call->output[i].data;
  take_inputs(s, call, 0, 1, -1, -1);
  switch (forward->id) {
  case COMBA_OP_widen:
  case COMBA_OP_narrow:
  case COMBA_OP_swiglu: break;
  case COMBA_OP_add: return comba_shape_equal(x, &call->input[1].shape);
  case COMBA_OP_activation: {
    const comba_activation_attributes *a = (const comba_activation_attributes *)call->attributes;
    s->choice = a->function;
    s->number = a->scale == 0 ? 1 : (float)a->scale;
    break;
  }
  case COMBA_OP_sigmoid_gate:
    s->number = (float)((const comba_sigmoid_gate_attributes *)call->attributes)->scale;
    break;
  case COMBA_OP_l2_norm:
    s->by_rows = true;
    s->number = (float)((const comba_norm_attributes *)call->attributes)->epsilon;
    break;
  case COMBA_OP_rms_norm:
    s->by_rows = true;
    s->number = (float)((const comba_norm_attributes *)call->attributes)->epsilon;
    take_inputs(s, call, 0, 2, 1, -1);
    if (s->in[2]) s->turns = (int)(call->input[1].shape.size[0] / d);
    break;
  case COMBA_OP_gated_rms_norm: {
    const comba_gated_rms_norm_attributes *a = (const comba_gated_rms_norm_attributes *)call->attributes;
    s->by_rows = true;
    s->number = (float)a->epsilon;
    s->choice = a->gate;
    take_inputs(s, call, 0, 1, 2, -1);
    s->turns = (int)(call->input[2].shape.size[0] / d);
    break;
  }
  case COMBA_OP_closed_loop: {
    const comba_closed_loop_attributes *a = (const comba_closed_loop_attributes *)call->attributes;
    s->by_rows = true;
    s->number = (float)a->epsilon;
    s->choice = a->after_norm * AFTER_NORM | a->p_normalize * P_NORMALIZE | a->feedback_decay * FEEDBACK_DECAY;
    take_inputs(s, call, 0, 1, 2, 3);
    break;
  }
  case COMBA_OP_head_skip: take_inputs(s, call, 0, 1, 2, -1); break;
  case COMBA_OP_decay_gate:
    take_inputs(s, call, 0, 1, 2, -1);
    s->choice = ((const comba_decay_gate_attributes *)call->attributes)->kind;
    break;
  case COMBA_OP_short_convolution:
    take_inputs(s, call, 0, 1, 2, 3);
    s->choice = (int)call->input[1].shape.size[2];
    s->number = ((const comba_short_convolution_attributes *)call->attributes)->silu;
    return !((const comba_short_convolution_attributes *)call->attributes)->head && takes_convolution(call);
  default: return false;
  }
  return true;
}

static int64_t tokens_of(const comba_forward *forward) {
  const comba_shape *x = &forward->call->input[0].shape;
  return x->rank < 3 ? 0 : x->size[0] * x->size[1];
}

template <class T> int cuda_tokens_together(const comba_forward *forwards, int count) {
  const int64_t tokens = tokens_of(forwards);
  if (tokens < 1 || tokens > MOST_TOKENS) return 0;
  token_program p = {(int)tokens};
  int next = 0; /* block of the token */
  for (int &i = p.steps; i < count && i < MOST_STEPS; i++) {
    token_step *s = &p.step[i];
    if (tokens_of(&forwards[i]) != tokens || !describe(&forwards[i], tokens, s)) break;
    s->waits = i && forwards[i].depth != forwards[i - 1].depth;
    if (s->waits) next = 0;
    s->block = next;
    next += s->by_rows ? s->rows : (s->rows * s->d + THREADS - 1) / THREADS;
  }
  if (!p.steps) return 0;
  /* as many as are there at once: two on a processor, of 132 */
  const int blocks = !comba_cuda_clusters() ? 1 : tokens <= 32 ? 8 : tokens <= 64 ? 4 : 2;
  comba_chain("operators of tokens", run_steps<T>, (unsigned)(tokens * blocks), THREADS, 0, blocks, p);
  return p.steps;
}
template int cuda_tokens_together<float>(const comba_forward *, int);
template int cuda_tokens_together<bfloat16>(const comba_forward *, int);

template <class T> static int together(const comba_forward *forwards, int count) {
  const int products = cuda_linear_together<T>(forwards, count);
  return products ? products : cuda_tokens_together<T>(forwards, count);
}
extern "C" int (*const comba_cuda_forward_together[COMBA_CUDA_TYPES])(const comba_forward *,
                                                                      int) = {together<float>, together<bfloat16>};
