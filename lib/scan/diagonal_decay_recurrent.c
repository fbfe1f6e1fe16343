/* Diagonal decay token by token. Columns of the state never meet, so forward works on tiles of them: one pass over the state
 * reads r = S^T a where there is a low-rank term, a second writes the new state and reads it for o. */
#include "scan/diagonal_decay.h"

/* Columns of the states of a segment, from the one before it to the one after its last token; and the state's gradient. */
int64_t COMBA_VARIANT(comba_diagonal_decay_recurrent_scratch)(int64_t K, int64_t V, bool backward) {
  const int64_t width = V > BACKWARD_WIDTH ? BACKWARD_WIDTH : V;
  return ((backward ? K * ((CHUNK + 2) * width + OPERANDS + 1) : K * (V + 1)) + 15) / 16 * 16;
}

static const real *row_of(const diagonal_decay_head *h, int operand, int64_t t) {
  return h->operand[operand] + t * h->stride[operand];
}

/* decay (K) of token t */
static void load_decay(const diagonal_decay_head *h, int64_t t, real *decay) {
  const real *g = row_of(h, GATE, t);
  for (int64_t i = 0; i < h->K; i++) decay[i] = scan_decay(g[i]);
}

/* ---- Forward ------------------------------------------------------------------------------------------------------ */

/* Token t: columns `first` on of the state, read at `from` and written at `to`, which may be the same. */
static void step(const diagonal_decay_head *h, int64_t t, int64_t first, int64_t width, real *decay, const real *from,
                 int64_t from_stride, real *to, int64_t to_stride) {
  const int64_t K = h->K;
  const real *q = row_of(h, Q, t), *k = row_of(h, KEY, t), *v = row_of(h, VALUE, t) + first;
  real *o = h->o + t * h->output_stride + first;
  real read[WIDTH_MAX] = {0}, output[WIDTH_MAX] = {0};
  load_decay(h, t, decay);
  if (h->readers > 1) {
    const real *a = row_of(h, A, t);
    for (int64_t i = 0; i < K; i++) {
      const real x = h->after_decay ? decay[i] * a[i] : a[i];
#pragma omp simd
      for (int64_t c = 0; c < width; c++) read[c] += x * from[i * from_stride + c];
    }
    if (h->writers == 1) { /* the delta rule: k writes v - r */
      for (int64_t c = 0; c < width; c++) read[c] = v[c] - read[c];
      v = read;
    }
    if (h->reads) memcpy(h->reads + t * h->output_stride + first, read, (size_t)width * sizeof(real));
  }
  if (h->writers > 1) {
    const real *b = row_of(h, B, t);
    for (int64_t i = 0; i < K; i++) {
      const real kept = decay[i], key = k[i], query = q[i], back = b[i];
#pragma omp simd
      for (int64_t c = 0; c < width; c++) {
        const real s = kept * from[i * from_stride + c] + key * v[c] + back * read[c];
        to[i * to_stride + c] = s;
        output[c] += query * s;
      }
    }
  } else {
    for (int64_t i = 0; i < K; i++) {
      const real kept = decay[i], key = k[i], query = q[i];
#pragma omp simd
      for (int64_t c = 0; c < width; c++) {
        const real s = kept * from[i * from_stride + c] + key * v[c];
        to[i * to_stride + c] = s;
        output[c] += query * s;
      }
    }
  }
  for (int64_t c = 0; c < width; c++) o[c] = h->scale * output[c];
}

void COMBA_VARIANT(comba_diagonal_decay_recurrent_forward)(const diagonal_decay_head *h, int64_t first, int64_t width,
                                                           real *scratch) {
  const int64_t K = h->K, V = h->V;
  const real *initial = h->initial_state ? h->initial_state + first : NULL;
  real *final = h->final_state + first, *decay = scratch, *state = scratch + K;
  if (h->length == 1 && initial && !h->states) {
    step(h, 0, first, width, decay, initial, V, final, V);
    return;
  }
  if (initial)
    scan_copy_columns(K, width, initial, V, state, width);
  else
    memset(state, 0, (size_t)(K * width) * sizeof(real));
  for (int64_t t = 0; t < h->length; t++) {
    if (h->states && t % CHUNK == 0)
      scan_copy_columns(K, width, state, width, h->states + t / CHUNK * h->state_stride + first, V);
    step(h, t, first, width, decay, state, width, state, width);
  }
  scan_copy_columns(K, width, state, width, final, V);
}

/* ---- Backward ----------------------------------------------------------------------------------------------------- */

/* Backward keeps a column of the state contiguous: (width, K). */
typedef struct recurrent_scratch {
  real *gradient;      /* (width,K) of the state after a token, then of the one before it */
  real *decay;         /* (K) of one token */
  real *sum[OPERANDS]; /* (K) sums over the columns of one token; none of v */
  real *states;        /* (CHUNK + 1, width, K) around the tokens of a segment */
} recurrent_scratch;

static recurrent_scratch lay_out(real *base, int64_t K, int64_t width) {
  recurrent_scratch s = {.gradient = base, .decay = base + K * width};
  for (int i = 0; i < OPERANDS; i++) s.sum[i] = s.decay + (i + 1) * K;
  s.states = s.decay + (OPERANDS + 1) * K;
  return s;
}

/* The states of a segment of n tokens from the one before it, with the reads that forward saved. */
static void replay(const diagonal_decay_head *h, int64_t start, int64_t n, int64_t first, int64_t width,
                   const recurrent_scratch *s) {
  const int64_t K = h->K;
  for (int64_t t = 0; t < n; t++) {
    const int64_t token = start + t;
    const real *reads = h->reads ? h->reads + token * h->output_stride + first : NULL;
    const real *k = row_of(h, KEY, token), *v = row_of(h, VALUE, token) + first;
    const real *b = h->writers > 1 ? row_of(h, B, token) : NULL;
    if (reads && !b) v = reads;
    load_decay(h, token, s->decay);
    for (int64_t c = 0; c < width; c++) {
      const real *before = s->states + (t * width + c) * K;
      real *after = s->states + ((t + 1) * width + c) * K;
#pragma omp simd
      for (int64_t i = 0; i < K; i++) after[i] = s->decay[i] * before[i] + v[c] * k[i];
      if (!b) continue;
#pragma omp simd
      for (int64_t i = 0; i < K; i++) after[i] += reads[c] * b[i];
    }
  }
}

/* Token t, columns `first` on, between the states (width,K) before and after it. */
static void step_back(const diagonal_decay_head *h, int64_t t, int64_t first, int64_t width, const real *before,
                      const real *after, const recurrent_scratch *s) {
  const int64_t K = h->K;
  const real *q = row_of(h, Q, t), *k = row_of(h, KEY, t), *v = row_of(h, VALUE, t) + first;
  const real *a = h->readers > 1 ? row_of(h, A, t) : NULL, *b = h->writers > 1 ? row_of(h, B, t) : NULL;
  const real *reads = a ? h->reads + t * h->output_stride + first : NULL;
  const real *output = h->output_gradient ? h->output_gradient + t * h->output_stride + first : NULL;
  real *dv = h->gradient[VALUE] ? h->gradient[VALUE] + t * h->stride[VALUE] + first : NULL;
  real *dq = s->sum[Q], *dk = s->sum[KEY], *dg = s->sum[GATE], *da = s->sum[A], *db = s->sum[B], *decay = s->decay;
  load_decay(h, t, decay);
  for (int i = 0; i < OPERANDS; i++) memset(s->sum[i], 0, (size_t)K * sizeof(real));
  for (int64_t c = 0; c < width; c++, before += K, after += K) {
    real *gradient = s->gradient + c * K, to_value = 0;
    const real read = output ? h->scale * output[c] : 0, value = a && !b ? reads[c] : v[c];
#pragma omp simd reduction(+ : to_value)
    for (int64_t i = 0; i < K; i++) {
      const real x = gradient[i] + q[i] * read;
      gradient[i] = x;
      dq[i] += after[i] * read;
      dk[i] += x * value;
      to_value += x * k[i];
    }
    if (dv) dv[c] += to_value;
    if (!a) {
#pragma omp simd
      for (int64_t i = 0; i < K; i++) {
        gradient[i] *= decay[i];
        dg[i] += before[i] * gradient[i];
      }
      continue;
    }
    real y = 0; /* the gradient of r */
    if (b) {
      const real r = reads[c];
#pragma omp simd reduction(+ : y)
      for (int64_t i = 0; i < K; i++) {
        db[i] += gradient[i] * r;
        y += gradient[i] * b[i];
      }
    } else {
      y = -to_value;
    }
    if (h->after_decay)
#pragma omp simd
      for (int64_t i = 0; i < K; i++) {
        da[i] += decay[i] * before[i] * y;
        gradient[i] = decay[i] * (gradient[i] + a[i] * y);
        dg[i] += before[i] * gradient[i];
      }
    else
#pragma omp simd
      for (int64_t i = 0; i < K; i++) {
        const real decayed = decay[i] * gradient[i];
        da[i] += before[i] * y;
        dg[i] += before[i] * decayed;
        gradient[i] = decayed + a[i] * y;
      }
  }
  for (int i = 0; i < OPERANDS; i++)
    if (i != VALUE && h->gradient[i]) scan_add(h->gradient[i] + t * h->stride[i], s->sum[i], K);
}

void COMBA_VARIANT(comba_diagonal_decay_recurrent_backward)(const diagonal_decay_head *h, real *scratch) {
  const int64_t K = h->K, V = h->V, last = (h->length - 1) / CHUNK * CHUNK;
  for (int i = 0; i < OPERANDS; i++)
    scan_clear(h->gradient[i], h->accumulate[i], h->length, i == VALUE ? V : K, h->stride[i]);
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
      replay(h, start, n, first, width, &s);
      for (int64_t t = n - 1; t >= 0; t--)
        step_back(h, start + t, first, width, s.states + t * K * width, s.states + (t + 1) * K * width, &s);
    }
    if (!h->initial_state_gradient) continue;
    for (int64_t i = 0; i < K; i++)
      for (int64_t c = 0; c < width; c++) h->initial_state_gradient[i * V + first + c] += s.gradient[c * K + i];
  }
}
