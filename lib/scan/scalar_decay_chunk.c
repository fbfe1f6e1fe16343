/* Scalar decay in chunks of C = 64 tokens. S is the state (K,V) before the chunk, i and j its tokens, G the inclusive sums of
 * g in it. Unrolling the recurrence inside the chunk:
 *   A_ij = scale e^{G_i - G_j} (q_i k_j), j <= i         o = scale e^G (q S) + A v
 *   S' = e^{G_n} S + k^T (e^{G_n - G} v)
 * No exponent is above 0. Every matrix product is by gemm, in place on the strided rows of q, k, v and o. */
#include "core/gemm.h"
#include "scan/scalar_decay.h"

enum { MATRIX = CHUNK * CHUNK };

/* The same scratch for both passes; forward leaves the second half out. Matrices (CHUNK, CHUNK) have rows CHUNK apart. */
typedef struct chunk_scratch {
  real *decay;  /* (C,C) e^{G_i - G_j}, 0 above the diagonal */
  real *score;  /* (C,C) A */
  real *state;  /* (K,V) S, or its gradient */
  real *values; /* (C,V) e^{G_n - G} v: what each token leaves in S' */

  real *score_gradient; /* (C,C) */
  real *output;         /* (C,V) gradient of q S */
  real *carried;        /* (C,V) gradient of v */
  real *keys;           /* (C,K) */
} chunk_scratch;

/* Lays the scratch out from `base` on and returns its size in reals. */
static int64_t lay_out(chunk_scratch *s, real *base, int64_t K, int64_t V, bool backward) {
  struct {
    real **array;
    int64_t size;
  } const part[] = {
      {&s->decay, MATRIX},          {&s->score, MATRIX},     {&s->state, K * V},       {&s->values, CHUNK * V},
      {&s->score_gradient, MATRIX}, {&s->output, CHUNK * V}, {&s->carried, CHUNK * V}, {&s->keys, CHUNK * K},
  };
  enum { FORWARD_PARTS = 4, PARTS = sizeof part / sizeof *part };
  int64_t offset = 0;
  for (int i = 0; i < (backward ? PARTS : FORWARD_PARTS); i++) {
    *part[i].array = base ? base + offset : NULL;
    offset += (part[i].size + 15) / 16 * 16;
  }
  return offset;
}

int64_t COMBA_VARIANT(comba_scalar_decay_chunk_scratch)(int64_t K, int64_t V, bool backward) {
  chunk_scratch s;
  return lay_out(&s, NULL, K, V, backward);
}

/* The powers of e of n tokens from `start` on. */
static void find_decay(const scalar_decay_head *h, int64_t start, int64_t n, chunk_decay *d, real *matrix) {
  int64_t stride;
  const real *g = scalar_decay_gates(h, start, &stride);
  chunk_find_decay(n, g, stride, d, matrix);
}

/* The lower triangle of matrix (n,n) times decay, 0 above it. */
static void mask(int64_t n, const real *decay, real *matrix) {
  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t j = 0; j < CHUNK; j++) {
      const real x = matrix[i * CHUNK + j] * decay[i * CHUNK + j];
      matrix[i * CHUNK + j] = j <= i ? x : 0;
    }
}

static void find_scores(const scalar_decay_head *h, int64_t start, int64_t n, chunk_scratch *s) {
  comba_gemm_serial('N', 'T', n, n, h->K, h->scale, h->q + start * h->query_stride, h->query_stride,
                    h->k + start * h->key_stride, h->key_stride, 0, s->score, CHUNK);
  mask(n, s->decay, s->score);
}

/* to (n,V) = factor_i from (n,V), rows of `from` `stride` apart */
static void scale_rows(int64_t n, int64_t V, const real *factor, const real *from, int64_t stride, real *to) {
  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t c = 0; c < V; c++) to[i * V + c] = factor[i] * from[i * stride + c];
}

/* ---- Forward ------------------------------------------------------------------------------------------------------ */

static void forward_chunk(const scalar_decay_head *h, int64_t start, int64_t n, chunk_scratch *s) {
  const int64_t K = h->K, V = h->V;
  const real *q = h->q + start * h->query_stride, *k = h->k + start * h->key_stride,
             *v = h->v + start * h->value_stride;
  real *o = h->o + start * h->output_stride;
  chunk_decay d;
  find_decay(h, start, n, &d, s->decay);
  find_scores(h, start, n, s);

  comba_gemm_serial('N', 'N', n, V, K, h->scale, q, h->query_stride, s->state, V, 0, o, h->output_stride);
  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t c = 0; c < V; c++) o[i * h->output_stride + c] *= d.in[i];
  comba_gemm_serial('N', 'N', n, V, n, 1, s->score, CHUNK, v, h->value_stride, 1, o, h->output_stride);

  scale_rows(n, V, d.out, v, h->value_stride, s->values);
  comba_gemm_serial('T', 'N', K, V, n, 1, k, h->key_stride, s->values, V, d.total, s->state, V);
}

void COMBA_VARIANT(comba_scalar_decay_chunk_forward)(const scalar_decay_head *h, real *scratch) {
  chunk_scratch s;
  lay_out(&s, scratch, h->K, h->V, false);
  const size_t state_size = (size_t)(h->K * h->V) * sizeof(real);
  scan_load_state(s.state, h->initial_state, h->K * h->V);
  for (int64_t start = 0; start < h->length; start += CHUNK) {
    if (h->states) memcpy(h->states + start / CHUNK * h->state_stride, s.state, state_size);
    forward_chunk(h, start, h->length - start < CHUNK ? h->length - start : CHUNK, &s);
  }
  memcpy(h->final_state, s.state, state_size);
}

/* ---- Backward ----------------------------------------------------------------------------------------------------- */

/* Paths between the chunk's own tokens, from A and its gradient. */
static void paths_between(int64_t n, const chunk_scratch *s, gate_paths *paths) {
  real paths_from[CHUNK] = {0}; /* entry j: paths from token j to tokens i >= t */
  for (int64_t t = n - 1; t >= 0; t--)
    paths->between[t] = chunk_paths_past(t, s->score + t * CHUNK, s->score_gradient + t * CHUNK, paths_from);
}

/* s->state holds the gradient of S' on entry and that of S on return. */
static void backward_chunk(const scalar_decay_head *h, int64_t start, int64_t n, chunk_scratch *s) {
  const int64_t K = h->K, V = h->V, value_stride = h->value_stride;
  const int64_t query_stride = h->query_stride, key_stride = h->key_stride;
  const real *q = h->q + start * query_stride, *k = h->k + start * key_stride, *v = h->v + start * value_stride;
  const real *state = h->states + start / CHUNK * h->state_stride;
  real *dq = h->dq ? h->dq + start * query_stride : NULL, *dk = h->dk ? h->dk + start * key_stride : NULL;
  real *dv = h->dv ? h->dv + start * value_stride : NULL;
  chunk_decay d;
  gate_paths paths;
  find_decay(h, start, n, &d, s->decay);
  find_scores(h, start, n, s);

  const real *output_gradient = h->output_gradient ? h->output_gradient + start * h->output_stride : s->output;
  const int64_t output_stride = h->output_gradient ? h->output_stride : V;
  if (!h->output_gradient) memset(s->output, 0, (size_t)(n * V) * sizeof(real));

  /* dv = e^{G_n - G} k dS' + A^T do */
  comba_gemm_serial('N', 'N', n, V, K, 1, k, key_stride, s->state, V, 0, s->carried, V);
  scale_rows(n, V, d.out, s->carried, V, s->carried);
  for (int64_t i = 0; i < n; i++) paths.to_state[i] = scan_dot(s->carried + i * V, v + i * value_stride, V);
  comba_gemm_serial('T', 'N', n, V, n, 1, s->score, CHUNK, output_gradient, output_stride, 1, s->carried, V);
  for (int64_t i = 0; dv && i < n; i++) {
    real *to = dv + i * value_stride;
    if (h->accumulate[VALUE])
      scan_add(to, s->carried + i * V, V);
    else
      memcpy(to, s->carried + i * V, (size_t)V * sizeof(real));
  }

  /* score_gradient = do v^T, then E = tril(scale e^{G_i - G_j} do v^T), the gradient of q k^T */
  comba_gemm_serial('N', 'T', n, n, V, 1, output_gradient, output_stride, v, value_stride, 0, s->score_gradient, CHUNK);
  paths_between(n, s, &paths);
  mask(n, s->decay, s->score_gradient);

  for (int64_t i = 0; i < n; i++) d.in[i] *= h->scale;
  scale_rows(n, V, d.in, output_gradient, output_stride, s->output);
  scale_rows(n, V, d.out, v, value_stride, s->values);

  comba_gemm_serial('N', 'T', n, K, V, 1, s->output, V, state, V, 0, s->keys, K);
  chunk_add_rows(n, K, s->keys, q, query_stride, h->accumulate[Q], dq, paths.from_state);
  if (dq) comba_gemm_serial('N', 'N', n, K, n, h->scale, s->score_gradient, CHUNK, k, key_stride, 1, dq, query_stride);
  if (dk) {
    comba_gemm_serial('T', 'N', n, K, n, h->scale, s->score_gradient, CHUNK, q, query_stride, h->accumulate[KEY], dk,
                      key_stride);
    comba_gemm_serial('N', 'T', n, K, V, 1, s->values, V, s->state, V, 1, dk, key_stride);
  }
  if (h->dg) {
    paths.across = chunk_across(d.total, state, s->state, K, V);
    chunk_gate_gradient(n, &paths, h->accumulate[GATE], h->dg + start * h->gate_stride, h->gate_stride);
  }
  comba_gemm_serial('T', 'N', K, V, n, 1, q, query_stride, s->output, V, d.total, s->state, V);
}

void COMBA_VARIANT(comba_scalar_decay_chunk_backward)(const scalar_decay_head *h, real *scratch) {
  chunk_scratch s;
  lay_out(&s, scratch, h->K, h->V, true);
  const int64_t size = h->K * h->V;
  scan_load_state(s.state, h->final_state_gradient, size);
  for (int64_t start = (h->length - 1) / CHUNK * CHUNK; start >= 0 && h->length; start -= CHUNK)
    backward_chunk(h, start, h->length - start < CHUNK ? h->length - start : CHUNK, &s);
  scan_store_gradient(h->initial_state_gradient, s.state, size, h->accumulate[INITIAL_STATE]);
}
