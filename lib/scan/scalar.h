/* What the engines with scalar decay share, delta_rule and scalar_decay: the size of a problem, how it is cut into tasks, and
 * what the gates of a chunk do.
 *
 * Sequences and value heads are independent, so a task is one (sequence, value head) in forward, and one (sequence, key
 * head) in backward, where it walks the value heads that read this key head in order: the gradients of what they share are
 * their sum. Where operands have head numbers of their own, the most is that of the value heads, the fewest of the key heads. */
#ifndef COMBA_SCAN_SCALAR_H
#define COMBA_SCAN_SCALAR_H

#include "ops/extent.h"
#include "scan/scan.h"

typedef struct scalar_size {
  int64_t sequences, tokens;         /* N; B T */
  int64_t length;                    /* tokens of each sequence; with cu_seqlens, of all of them */
  int64_t heads, value_heads, group; /* the fewest and the most heads of an operand; their ratio */
  int64_t K, V;
  int64_t states; /* saved states a value head */
} scalar_size;

/* q, k (B,T,heads,K), v (B,T,heads,V), cu_seqlens (N+1) or absent. Accepts any shapes of the right ranks. */
static inline scalar_size scalar_size_of(const comba_shape *q, const comba_shape *k, const comba_shape *v,
                                         const comba_shape *cu_seqlens) {
  const int64_t heads[] = {q->size[2], k->size[2], v->size[2]};
  scalar_size s = {.tokens = q->size[0] * q->size[1], .K = q->size[3], .V = v->size[3]};
  s.heads = s.value_heads = heads[0];
  for (int i = 1; i < 3; i++) {
    s.heads = heads[i] < s.heads ? heads[i] : s.heads;
    s.value_heads = heads[i] > s.value_heads ? heads[i] : s.value_heads;
  }
  s.group = s.value_heads / s.heads;
  s.sequences = cu_seqlens->rank ? cu_seqlens->size[0] - 1 : q->size[0];
  s.length = q->size[1];
  s.states = scan_states(cu_seqlens->rank, s.sequences, s.length);
  return s;
}

/* ---- Tasks -------------------------------------------------------------------------------------------------------- */

typedef struct scalar_tasks {
  const comba_call *call;
  scalar_size size;
  bool chunks;
  int64_t width, tiles; /* forward: heads in chunks, and tiles of a head's columns token by token */
} scalar_tasks;

/* least_state, least_work: of scan_in_chunks. */
static inline scalar_tasks scalar_tasks_of(const scalar_size *size, comba_mode mode, int64_t least_state,
                                           int64_t least_work, const comba_call *call) {
  const int64_t length = size->tokens / size->sequences;
  scalar_tasks x = {.call = call, .size = *size};
  x.chunks = scan_in_chunks(mode, length, size->K, size->V, least_state, least_work);
  x.width = x.chunks ? size->V : scan_tile_width(length, size->K, size->V);
  x.tiles = (size->V + x.width - 1) / x.width;
  return x;
}

static inline int64_t scalar_forward_tasks(const scalar_tasks *x) {
  return x->size.sequences * x->size.value_heads * x->tiles;
}

static inline int64_t scalar_backward_tasks(const scalar_tasks *x) {
  return x->size.sequences * x->size.heads;
}

/* Of forward task `task`: its sequence and value head, and columns [first, first + width). */
typedef struct scalar_part {
  int64_t sequence, head, first, width;
} scalar_part;

static inline scalar_part scalar_part_of(const scalar_tasks *x, int64_t task) {
  const int64_t index = task / x->tiles, first = task % x->tiles * x->width, left = x->size.V - first;
  return (scalar_part){index / x->size.value_heads, index % x->size.value_heads, first,
                       left < x->width ? left : x->width};
}

/* ---- Shapes ------------------------------------------------------------------------------------------------------- */

/* Numbers of the operands that both engines have. */
typedef struct scalar_operands {
  int q, k, v, g, initial_state, cu_seqlens;
  bool gates_optional;
  bool separate_heads; /* q, k and v each have a number of heads of their own; else k has q's, and v a multiple of it */
} scalar_operands;

/* Checks those operands, sets the shapes of o, the final state and the saved states. */
static inline comba_status scalar_infer(comba_signature *s, const scalar_operands *at) {
  const comba_shape *q = &s->input[at->q], *k = &s->input[at->k], *v = &s->input[at->v], *g = &s->input[at->g];
  const comba_shape *state = &s->input[at->initial_state], *cu_seqlens = &s->input[at->cu_seqlens];
  if (!comba_extent_fits(q, 4)) return comba_fail_shape(s, at->q, "(B, T, H, K)");
  const comba_shape key = COMBA_SHAPE(q->size[0], q->size[1], at->separate_heads ? k->size[2] : q->size[2], q->size[3]);
  if (!comba_extent_fits(k, 4) || !comba_shape_equal(k, &key))
    return comba_fail_shape(s, at->k,
                            at->separate_heads ? "(B, T, heads, K), all but heads of q" : "(B, T, H, K), as q");
  if (!comba_extent_fits(v, 4) || v->size[0] != q->size[0] || v->size[1] != q->size[1] ||
      (!at->separate_heads && v->size[2] % q->size[2]))
    return comba_fail_shape(s, at->v, "(B, T, HV, V) with B and T of q and HV a multiple of its H");
  const scalar_size size = scalar_size_of(q, k, v, cu_seqlens);
  const int operands[] = {at->q, at->k, at->v};
  for (int i = 0; i < 3; i++) {
    const int64_t heads = s->input[operands[i]].size[2];
    if (size.value_heads % heads || heads % size.heads)
      return comba_fail_shape(s, operands[i],
                              "heads that divide the most heads of an input and are a multiple of the fewest");
  }
  if ((g->rank || !at->gates_optional) && !comba_shape_equal(g, &COMBA_SHAPE(q->size[0], q->size[1], size.value_heads)))
    return comba_fail_shape(s, at->g, "(B, T, HV), HV the most heads of an input");
  if (cu_seqlens->rank && (!comba_extent_fits(cu_seqlens, 1) || cu_seqlens->size[0] < 2 || q->size[0] != 1))
    return comba_fail_shape(s, at->cu_seqlens, "(N + 1) with N at least 1, and B = 1");

  const comba_shape output = COMBA_SHAPE(q->size[0], q->size[1], size.value_heads, size.V);
  const comba_shape states = COMBA_SHAPE(size.sequences, size.value_heads, size.K, size.V);
  const comba_shape saved_states = COMBA_SHAPE(size.states, size.value_heads, size.K, size.V);
  if (state->rank && !comba_shape_equal(state, &states))
    return comba_fail_shape(s, at->initial_state, "(N, HV, K, V), N = B without cu_seqlens");
  /* a slot's scratch is below 128 (64 + K) (64 + V) reals in both forms and both passes of both engines */
  const comba_shape scratch_bound = COMBA_SHAPE(128, CHUNK + size.K, CHUNK + size.V);
  const comba_shape *results[] = {&output, &states, &saved_states, &scratch_bound};
  for (int i = 0; i < 4; i++)
    if (!comba_extent_fits(results[i], 0)) return comba_fail_extent(s, results[i]);
  s->outputs = 2;
  s->output[0] = output;
  s->output[1] = states;
  s->saved = 1;
  s->saved_shape[0] = saved_states;
  return COMBA_OK;
}

/* ---- Gates of a chunk --------------------------------------------------------------------------------------------- */

/* Powers of e that a chunk needs, G the inclusive sums of its gates. */
typedef struct chunk_decay {
  real in[CHUNK];     /* e^{G_i}: what is left of S at token i */
  real before[CHUNK]; /* e^{G_{i-1}}: what is left before token i decays it */
  real out[CHUNK];    /* e^{G_n - G_i}: what is left of token i at the end */
  real total;         /* e^{G_n} */
} chunk_decay;

/* The powers of e of n tokens, gates `stride` apart; matrix (C,C) = e^{G_i - G_j}. Sums of gates run in double: a float sum
 * forgets a weak gate next to a saturated one. Above the diagonal the matrix holds 1 or 0, which its readers mask: not what
 * the scratch held, as denormal numbers are slow. */
static inline void chunk_find_decay(int64_t n, const real *g, int64_t stride, chunk_decay *d, real *matrix) {
  double sum = 0, sums[CHUNK], before[CHUNK];
  for (int64_t i = 0; i < CHUNK; i++) {
    before[i] = sum;
    if (i < n) sum += (double)g[i * stride];
    sums[i] = sum;
  }
  for (int64_t i = 0; i < CHUNK; i++) {
    d->in[i] = scan_decay((real)sums[i]);
    d->before[i] = scan_decay((real)before[i]);
    d->out[i] = scan_decay((real)(sum - sums[i]));
  }
  d->total = d->in[CHUNK - 1];
  for (int64_t i = 0; i < n; i++) {
    int64_t block = 0;
    for (; block <= i; block += BLOCK)
#pragma omp simd
      for (int64_t j = block; j < block + BLOCK; j++) {
        const real x = (real)(sums[i] - sums[j]);
        matrix[i * CHUNK + j] = scan_decay(x < 0 ? x : 0);
      }
    memset(matrix + i * CHUNK + block, 0, (size_t)(CHUNK - block) * sizeof(real));
  }
}

/* A gate lies between tokens: g_t scales every path from a token j < t (or from S) to a token i >= t (or to S'). Sums over
 * just these paths keep dg exact where gates are saturated; differences of sums over all paths would not. */
typedef struct gate_paths {
  real from_state[CHUNK + 1]; /* from S to the state that token i reads */
  real to_state[CHUNK];       /* from token j to S' */
  real across;                /* from S to S' */
  real between[CHUNK];        /* from tokens j < t to tokens i >= t; entry t */
} gate_paths;

/* dg of the chunk's n tokens, `stride` apart. */
static inline void chunk_gate_gradient(int64_t n, const gate_paths *paths, bool accumulate, real *dg, int64_t stride) {
  if (!dg) return;
  real sums[CHUNK], sum = paths->across;
  for (int64_t t = 0; t < n; t++) {
    sums[t] = sum + paths->between[t];
    sum += paths->to_state[t];
  }
  sum = 0;
  for (int64_t t = n - 1; t >= 0; t--) {
    sum += paths->from_state[t];
    dg[t * stride] = (accumulate ? dg[t * stride] : 0) + sums[t] + sum;
  }
}

/* e^{G_n} <S, dS'>: K V terms, by rows, and the rows in double. */
static inline real chunk_across(real total, const real *state, const real *gradient, int64_t K, int64_t V) {
  double sum = 0;
  for (int64_t i = 0; i < K; i++) sum += (double)scan_dot(state + i * V, gradient + i * V, V);
  return total * (real)sum;
}

/* Adds the paths from tokens j < t to token t to those that pass token t, paths_from[j], and returns the sum of these. t only falls,
 * so what is left behind in blocks of larger j is not read again. */
static inline real chunk_paths_past(int64_t t, const real *score, const real *gradient, real paths_from[CHUNK]) {
  const int64_t end = (t + BLOCK - 1) / BLOCK * BLOCK;
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < end; j++) {
    paths_from[j] = j < t ? paths_from[j] + score[j] * gradient[j] : 0;
    sum += paths_from[j];
  }
  return sum;
}

/* to (n,K), rows `stride` apart, = or += from (n,K); inner[i] = from_i x_i. */
static inline void chunk_add_rows(int64_t n, int64_t K, const real *from, const real *x, int64_t stride,
                                  bool accumulate, real *to, real *inner) {
  for (int64_t i = 0; i < n; i++) {
    inner[i] = scan_dot(from + i * K, x + i * stride, K);
    if (!to) continue;
    if (accumulate)
      for (int64_t c = 0; c < K; c++) to[i * stride + c] += from[i * K + c];
    else
      memcpy(to + i * stride, from + i * K, (size_t)K * sizeof(real));
  }
}

#endif
