/* The delta rule token by token. Columns of the state never meet, so forward works on tiles of them. With x = S^T p and
 * y = S^T q of the state before the token read in one pass, the state is read twice and written once:
 *   e = v - x (e^g x with feedback after decay);  o = scale (e^g y + (k q) beta e);  S' = e^g S + beta k e^T */
#include "scan/delta_rule.h"

/* Columns of the states of a segment, from the one before it to the one after its last token; and the state's gradient. */
int64_t COMBA_VARIANT(comba_delta_rule_recurrent_scratch)(int64_t K, int64_t V, bool backward) {
  const int64_t width = V > BACKWARD_WIDTH ? BACKWARD_WIDTH : V;
  return ((backward ? K * ((CHUNK + 2) * width + 4) : K * V) + 15) / 16 * 16;
}

/* ---- Forward ------------------------------------------------------------------------------------------------------ */

/* Token t: columns `first` on of the state, read at `from` and written at `to`, which may be the same. */
static void step(const delta_rule_head *h, int64_t t, int64_t first, int64_t width, const real *from,
                 int64_t from_stride, real *to, int64_t to_stride) {
  const int64_t K = h->K;
  const real *q = h->q + t * h->key_stride, *k = h->k + t * h->key_stride, *p = h->p + t * h->key_stride;
  const real *v = h->v + t * h->value_stride + first;
  real *o = h->o + t * h->value_stride + first;
  const real beta = h->beta[t * h->value_heads], decay = scan_decay(h->g[t * h->value_heads]);
  const real feedback = h->after_decay ? decay : 1, through = scan_dot(k, q, K);
  real x[WIDTH_MAX], y[WIDTH_MAX];
  memset(x, 0, (size_t)width * sizeof(real));
  memset(y, 0, (size_t)width * sizeof(real));
  int64_t i = 0;
  for (; i + 4 <= K; i += 4) {
    const real *row = from + i * from_stride;
#pragma omp simd
    for (int64_t c = 0; c < width; c++) {
      const real s0 = row[c], s1 = row[from_stride + c], s2 = row[2 * from_stride + c], s3 = row[3 * from_stride + c];
      x[c] += p[i] * s0 + p[i + 1] * s1 + p[i + 2] * s2 + p[i + 3] * s3;
      y[c] += q[i] * s0 + q[i + 1] * s1 + q[i + 2] * s2 + q[i + 3] * s3;
    }
  }
  for (; i < K; i++)
    for (int64_t c = 0; c < width; c++) {
      x[c] += p[i] * from[i * from_stride + c];
      y[c] += q[i] * from[i * from_stride + c];
    }
  for (int64_t c = 0; c < width; c++) x[c] = v[c] - feedback * x[c];
  if (h->errors) memcpy(h->errors + t * h->value_stride + first, x, (size_t)width * sizeof(real));
  for (int64_t c = 0; c < width; c++) {
    x[c] *= beta;
    o[c] = h->scale * (decay * y[c] + through * x[c]);
  }
  for (i = 0; i < K; i++) {
    const real key = k[i];
#pragma omp simd
    for (int64_t c = 0; c < width; c++) to[i * to_stride + c] = decay * from[i * from_stride + c] + key * x[c];
  }
}

void COMBA_VARIANT(comba_delta_rule_recurrent_forward)(const delta_rule_head *h, int64_t first, int64_t width,
                                                       real *scratch) {
  const int64_t K = h->K, V = h->V;
  const real *initial = h->initial_state ? h->initial_state + first : NULL;
  real *final = h->final_state + first;
  if (h->length == 1 && initial && !h->states) {
    step(h, 0, first, width, initial, V, final, V);
    return;
  }
  if (initial)
    scan_copy_columns(K, width, initial, V, scratch, width);
  else
    memset(scratch, 0, (size_t)(K * width) * sizeof(real));
  for (int64_t t = 0; t < h->length; t++) {
    if (h->states && t % CHUNK == 0)
      scan_copy_columns(K, width, scratch, width, h->states + t / CHUNK * h->state_stride + first, V);
    step(h, t, first, width, scratch, width, scratch, width);
  }
  scan_copy_columns(K, width, scratch, width, final, V);
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
