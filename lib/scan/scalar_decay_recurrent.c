/* Scalar decay token by token. Columns of the state never meet, so forward works on tiles of them, and one pass over a tile
 * writes the state and reads o from it. */
#include "scan/scalar_decay.h"

/* Columns of the states of a segment, from the one before it to the one after its last token; and the state's gradient. */
int64_t COMBA_VARIANT(comba_scalar_decay_recurrent_scratch)(int64_t K, int64_t V, bool backward) {
  const int64_t width = V > BACKWARD_WIDTH ? BACKWARD_WIDTH : V;
  return ((backward ? K * ((CHUNK + 2) * width + 3) : K * V) + 15) / 16 * 16;
}

static real decay_of(const scalar_decay_head *h, int64_t t) {
  int64_t stride;
  return scan_decay(*scalar_decay_gates(h, t, &stride));
}

/* ---- Forward ------------------------------------------------------------------------------------------------------ */

/* Token t: columns `first` on of the state, read at `from` and written at `to`, which may be the same. */
static void step(const scalar_decay_head *h, int64_t t, int64_t first, int64_t width, const real *from,
                 int64_t from_stride, real *to, int64_t to_stride) {
  const int64_t K = h->K;
  const real *q = h->q + t * h->query_stride, *k = h->k + t * h->key_stride, *v = h->v + t * h->value_stride + first;
  real *o = h->o + t * h->output_stride + first;
  const real decay = decay_of(h, t);
  real output[WIDTH_MAX];
  memset(output, 0, (size_t)width * sizeof(real));
  for (int64_t i = 0; i < K; i++) {
    const real key = k[i], query = q[i];
#pragma omp simd
    for (int64_t c = 0; c < width; c++) {
      const real s = decay * from[i * from_stride + c] + key * v[c];
      to[i * to_stride + c] = s;
      output[c] += query * s;
    }
  }
  for (int64_t c = 0; c < width; c++) o[c] = h->scale * output[c];
}

void COMBA_VARIANT(comba_scalar_decay_recurrent_forward)(const scalar_decay_head *h, int64_t first, int64_t width,
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
  real *gradient;          /* (width,K) of the state after a token, then of the one before it */
  real *dq, *dk, *decayed; /* (K) sums over the columns of one token */
  real *states;            /* (CHUNK + 1, width, K) around the tokens of a segment */
} recurrent_scratch;

static recurrent_scratch lay_out(real *base, int64_t K, int64_t width) {
  real *const sums = base + K * width;
  return (recurrent_scratch){base, sums, sums + K, sums + 2 * K, sums + 3 * K};
}

/* The states of a segment of n tokens from the one before it. */
static void replay(const scalar_decay_head *h, int64_t start, int64_t n, int64_t first, int64_t width, real *states) {
  const int64_t K = h->K;
  for (int64_t t = 0; t < n; t++) {
    const real *k = h->k + (start + t) * h->key_stride, *v = h->v + (start + t) * h->value_stride + first;
    const real decay = decay_of(h, start + t);
    for (int64_t c = 0; c < width; c++) {
      const real *before = states + (t * width + c) * K, value = v[c];
      real *after = states + ((t + 1) * width + c) * K;
#pragma omp simd
      for (int64_t i = 0; i < K; i++) after[i] = decay * before[i] + value * k[i];
    }
  }
}

/* Token t, columns `first` on, between the states (width,K) before and after it. */
static void step_back(const scalar_decay_head *h, int64_t t, int64_t first, int64_t width, const real *before,
                      const real *after, const recurrent_scratch *s) {
  const int64_t K = h->K;
  const real *q = h->q + t * h->query_stride, *k = h->k + t * h->key_stride, *v = h->v + t * h->value_stride + first;
  const real *output = h->output_gradient ? h->output_gradient + t * h->output_stride + first : NULL;
  real *dv = h->dv ? h->dv + t * h->value_stride + first : NULL;
  real *dq = s->dq, *dk = s->dk, *decayed = s->decayed;
  const real decay = decay_of(h, t);
  memset(dq, 0, (size_t)(3 * K) * sizeof(real));
  for (int64_t c = 0; c < width; c++, before += K, after += K) {
    real *gradient = s->gradient + c * K, to_value = 0;
    const real read = output ? h->scale * output[c] : 0, value = v[c];
#pragma omp simd reduction(+ : to_value)
    for (int64_t i = 0; i < K; i++) {
      const real x = gradient[i] + q[i] * read;
      dq[i] += after[i] * read;
      dk[i] += x * value;
      to_value += x * k[i];
      gradient[i] = decay * x;
      decayed[i] += before[i] * gradient[i];
    }
    if (dv) dv[c] += to_value;
  }
  scan_add(h->dq ? h->dq + t * h->query_stride : NULL, dq, K);
  scan_add(h->dk ? h->dk + t * h->key_stride : NULL, dk, K);
  if (!h->dg) return;
  real sum = 0;
  for (int64_t i = 0; i < K; i++) sum += decayed[i];
  h->dg[t * h->gate_stride] += sum;
}

void COMBA_VARIANT(comba_scalar_decay_recurrent_backward)(const scalar_decay_head *h, real *scratch) {
  const int64_t K = h->K, V = h->V, last = (h->length - 1) / CHUNK * CHUNK;
  scan_clear(h->dq, h->accumulate[Q], h->length, K, h->query_stride);
  scan_clear(h->dk, h->accumulate[KEY], h->length, K, h->key_stride);
  scan_clear(h->dv, h->accumulate[VALUE], h->length, V, h->value_stride);
  scan_clear(h->dg, h->accumulate[GATE], h->length, 1, h->gate_stride);
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
