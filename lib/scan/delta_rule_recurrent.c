/* The delta rule token by token. Columns of the state never meet, so forward works on tiles of them. With x = S^T p and
 * y = S^T q of the state before the token read in one pass, the state is read twice and written once:
 *   e = v - x (e^g x with feedback after decay);  o = scale (e^g y + (k q) beta e);  S' = e^g S + beta k e^T */
#include "core/vector.h"
#include "scan/delta_rule.h"

/* Columns of the states of a segment, from the one before it to the one after its last token; and the state's gradient. */
int64_t COMBA_VARIANT(comba_delta_rule_recurrent_scratch)(int64_t K, int64_t V, bool backward) {
  const int64_t width = V > BACKWARD_WIDTH ? BACKWARD_WIDTH : V;
  return ((backward ? K * ((CHUNK + 2) * width + 4) : K * V) + 15) / 16 * 16;
}

/* ---- Forward ------------------------------------------------------------------------------------------------------ */

enum {
  STRIP = 2, /* the most vectors of columns in one pass over the state; the last has `lanes` columns */
  AHEAD = 4, /* tokens whose rows are asked for */
};

static inline __attribute__((always_inline)) vector load(const real *from, int64_t lanes) {
  return lanes == LANES ? *(const vector *)from : vector_load_first(from, lanes);
}
static inline __attribute__((always_inline)) void store(real *to, int64_t lanes, vector value) {
  if (lanes == LANES)
    *(vector *)to = value;
  else
    vector_store_first(to, lanes, value);
}

/* Token t, if there is one */
static inline __attribute__((always_inline)) void fetch(const delta_rule_head *h, int64_t t, int64_t first,
                                                        int64_t width) {
  const int64_t key = t * h->key_stride, value = t * h->value_stride + first;
  if (t >= h->length) return;
  scan_fetch(h->q + key, 1, h->K, 0);
  scan_fetch(h->k + key, 1, h->K, 0);
  scan_fetch(h->p + key, 1, h->K, 0);
  scan_fetch(h->v + value, 1, width, 0);
  scan_fetch(h->o + value, 1, width, 0);
  if (h->errors) scan_fetch(h->errors + value, 1, width, 0);
}

/* Token t: columns `first` on of the state, read at `from` and written at `to`, which may be the same. Even and odd rows are
 * summed apart, so that an addition need not wait for the one before. `vectors` is a constant where this is inlined. */
static inline __attribute__((always_inline)) void step(int vectors, int64_t lanes, const delta_rule_head *h, int64_t t,
                                                       int64_t first, const real *from, int64_t from_stride, real *to,
                                                       int64_t to_stride) {
  const int64_t K = h->K, even = K / 2 * 2;
  const real *q = h->q + t * h->key_stride, *k = h->k + t * h->key_stride, *p = h->p + t * h->key_stride;
  const int64_t value = t * h->value_stride + first;
  const real beta = h->beta[t * h->value_heads], decay = scan_decay(h->g[t * h->value_heads]);
  const real feedback = h->after_decay ? decay : 1, through = scan_dot(k, q, K);
  vector x[2][STRIP] = {0}, y[2][STRIP] = {0}, added[STRIP];
#define AT(v) (v + 1 < vectors ? LANES : lanes)
  for (int64_t i = 0; i < even; i += 2)
#pragma GCC unroll 2
    for (int row = 0; row < 2; row++)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; v++) {
        const vector s = load(from + (i + row) * from_stride + v * LANES, AT(v));
        x[row][v] += p[i + row] * s;
        y[row][v] += q[i + row] * s;
      }
#pragma GCC unroll 2
  for (int v = 0; v < vectors; v++) {
    const int64_t at = value + v * LANES;
    if (even < K) {
      const vector s = load(from + even * from_stride + v * LANES, AT(v));
      x[0][v] += p[even] * s;
      y[0][v] += q[even] * s;
    }
    const vector error = load(h->v + at, AT(v)) - feedback * (x[0][v] + x[1][v]);
    if (h->errors) store(h->errors + at, AT(v), error);
    added[v] = beta * error;
    store(h->o + at, AT(v), h->scale * (decay * (y[0][v] + y[1][v]) + through * added[v]));
  }
  for (int64_t i = 0; i < K; i++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
      store(to + i * to_stride + v * LANES, AT(v),
            decay * load(from + i * from_stride + v * LANES, AT(v)) + k[i] * added[v]);
#undef AT
}

/* All tokens, for `vectors` vectors of columns; `state` (K, width) is scratch. */
static inline __attribute__((always_inline)) void strip(int vectors, int64_t lanes, const delta_rule_head *h,
                                                        int64_t first, real *state) {
  const int64_t K = h->K, V = h->V, width = (vectors - 1) * LANES + lanes;
  const real *initial = h->initial_state ? h->initial_state + first : NULL;
  real *final = h->final_state + first;
  if (h->length == 1 && initial && !h->states) {
    step(vectors, lanes, h, 0, first, initial, V, final, V);
    return;
  }
  if (initial)
    scan_copy_columns(K, width, initial, V, state, width);
  else
    memset(state, 0, (size_t)(K * width) * sizeof(real));
  for (int64_t t = 0; t < h->length; t++) {
    if (h->states && t % CHUNK == 0)
      scan_copy_columns(K, width, state, width, h->states + t / CHUNK * h->state_stride + first, V);
    fetch(h, t + AHEAD, first, width);
    step(vectors, lanes, h, t, first, state, width, state, width);
  }
  scan_copy_columns(K, width, state, width, final, V);
}

void COMBA_VARIANT(comba_delta_rule_recurrent_forward)(const delta_rule_head *h, int64_t first, int64_t width,
                                                       real *scratch) {
  const int64_t end = first + width;
  for (; first + 2 * LANES <= end; first += 2 * LANES) strip(2, LANES, h, first, scratch);
  for (; first + LANES <= end; first += LANES) strip(1, LANES, h, first, scratch);
  if (first < end) strip(1, end - first, h, first, scratch);
}

/* ---- Backward ----------------------------------------------------------------------------------------------------- */

/* Backward keeps a column of the state contiguous: (width, K). Most of its sums run over columns and so stay in vectors. */
typedef struct recurrent_scratch {
  real *gradient;               /* (width,K) of the state after a token, then of the one before it */
  real *dq, *dk, *dp, *decayed; /* (K) sums over the columns of one token */
  real *states;                 /* (CHUNK + 1, width, K) around the tokens of a segment */
} recurrent_scratch;

static recurrent_scratch lay_out(real *base, int64_t K, int64_t width) {
  real *const sums = base + K * width;
  return (recurrent_scratch){base, sums, sums + K, sums + 2 * K, sums + 3 * K, sums + 4 * K};
}

/* The states of a segment of n tokens from the one before it, with the errors that forward saved. */
static void replay(const delta_rule_head *h, int64_t start, int64_t n, int64_t first, int64_t width, real *states) {
  const int64_t K = h->K;
  for (int64_t t = 0; t < n; t++) {
    const int64_t token = start + t;
    const real *k = h->k + token * h->key_stride, *errors = h->errors + token * h->value_stride + first;
    const real beta = h->beta[token * h->value_heads], decay = scan_decay(h->g[token * h->value_heads]);
    for (int64_t c = 0; c < width; c++) {
      const real *before = states + (t * width + c) * K, value = beta * errors[c];
      real *after = states + ((t + 1) * width + c) * K;
#pragma omp simd
      for (int64_t i = 0; i < K; i++) after[i] = decay * before[i] + value * k[i];
    }
  }
}

/* Token t, columns `first` on, between the states (width,K) before and after it. */
static void step_back(const delta_rule_head *h, int64_t t, int64_t first, int64_t width, const real *before,
                      const real *after, const recurrent_scratch *s) {
  const int64_t K = h->K, gate = t * h->value_heads;
  const real *q = h->q + t * h->key_stride, *k = h->k + t * h->key_stride, *p = h->p + t * h->key_stride;
  const real *errors = h->errors + t * h->value_stride + first;
  const real *output = h->output_gradient ? h->output_gradient + t * h->value_stride + first : NULL;
  real *dv = h->dv ? h->dv + t * h->value_stride + first : NULL;
  const real beta = h->beta[gate], decay = scan_decay(h->g[gate]), feedback = h->after_decay ? decay : 1;
  real *dq = s->dq, *dk = s->dk, *dp = s->dp, *decayed = s->decayed, dbeta = 0;
  memset(dq, 0, (size_t)(4 * K) * sizeof(real));
  for (int64_t c = 0; c < width; c++, before += K, after += K) {
    real *gradient = s->gradient + c * K, y = 0; /* y: the gradient of beta e */
    const real read = output ? h->scale * output[c] : 0, value = beta * errors[c];
#pragma omp simd reduction(+ : y)
    for (int64_t i = 0; i < K; i++) {
      const real x = gradient[i] + q[i] * read;
      gradient[i] = x;
      dq[i] += after[i] * read;
      dk[i] += x * value;
      y += x * k[i];
    }
    dbeta += y * errors[c];
    if (dv) dv[c] += beta * y;
    const real fed = -beta * y * feedback; /* the gradient of S^T p */
    /* e^g scales the state, and with feedback after decay what p reads of it */
    const real fed_decayed = h->after_decay ? -beta * y : 0;
#pragma omp simd
    for (int64_t i = 0; i < K; i++) {
      decayed[i] += before[i] * (gradient[i] + fed_decayed * p[i]);
      dp[i] += before[i] * fed;
      gradient[i] = decay * gradient[i] + fed * p[i];
    }
  }
  scan_add(h->dq ? h->dq + t * h->key_stride : NULL, dq, K);
  scan_add(h->dk ? h->dk + t * h->key_stride : NULL, dk, K);
  scan_add(h->dp ? h->dp + t * h->key_stride : NULL, dp, K);
  if (h->dbeta) h->dbeta[gate] += dbeta;
  if (h->dg) {
    real sum = 0;
    for (int64_t i = 0; i < K; i++) sum += decayed[i];
    h->dg[gate] += decay * sum;
  }
}

void COMBA_VARIANT(comba_delta_rule_recurrent_backward)(const delta_rule_head *h, real *scratch) {
  const int64_t K = h->K, V = h->V, last = (h->length - 1) / CHUNK * CHUNK;
  scan_clear(h->dq, h->accumulate[Q], h->length, K, h->key_stride);
  scan_clear(h->dk, h->accumulate[KEY], h->length, K, h->key_stride);
  scan_clear(h->dp, h->accumulate[P], h->length, K, h->key_stride);
  scan_clear(h->dv, h->accumulate[VALUE], h->length, V, h->value_stride);
  scan_clear(h->dbeta, h->accumulate[BETA], h->length, 1, h->value_heads);
  scan_clear(h->dg, h->accumulate[GATE], h->length, 1, h->value_heads);
  scan_clear(h->initial_state_gradient, h->accumulate[INITIAL_STATE], K, V, V);
  for (int64_t first = 0; first < V; first += BACKWARD_WIDTH) {
    const int64_t width = V - first < BACKWARD_WIDTH ? V - first : BACKWARD_WIDTH;
    const recurrent_scratch s = lay_out(scratch, K, width);
    if (h->final_state_gradient)
      scan_load_columns(K, V, width, h->final_state_gradient + first, s.gradient);
    else
      memset(s.gradient, 0, (size_t)(K * width) * sizeof(real));
    for (int64_t start = last; h->length && start >= 0; start -= CHUNK) {
      const int64_t n = h->length - start < CHUNK ? h->length - start : CHUNK;
      scan_load_columns(K, V, width, h->states + start / CHUNK * h->state_stride + first, s.states);
      replay(h, start, n, first, width, s.states);
      for (int64_t t = n - 1; t >= 0; t--)
        step_back(h, start + t, first, width, s.states + t * K * width, s.states + (t + 1) * K * width, &s);
    }
    if (!h->initial_state_gradient) continue;
    for (int64_t i = 0; i < K; i++)
      for (int64_t c = 0; c < width; c++) h->initial_state_gradient[i * V + first + c] += s.gradient[c * K + i];
  }
}
