/* The delta rule in chunks of C = 64 tokens. S is the state (K,V) before the chunk, i and j its tokens, G the inclusive sums
 * of g in it, P_i = G_i with feedback after decay, else G_{i-1}. Unrolling the recurrence inside the chunk:
 *   L_ij = e^{P_i - G_j} (p_i k_j) beta_j, j < i         errors e = (I + L)^{-1} (v - e^P (p S))
 *   A_ij = scale e^{G_i - G_j} (q_i k_j), j <= i         o = scale e^G (q S) + A (beta e)
 *   S' = e^{G_n} S + k^T (e^{G_n - G} beta e)
 * No exponent is above 0. Every matrix product is by gemm, in place on the strided rows of q, k, p, v and o. */
#include "core/gemm.h"
#include "scan/delta_rule.h"

enum { MATRIX = CHUNK * CHUNK };

/* Powers of e that the chunk needs. */
typedef struct chunk_decay {
  real in[CHUNK];       /* e^{G_i}: what is left of S at token i */
  real feedback[CHUNK]; /* e^{P_i} */
  real out[CHUNK];      /* e^{G_n - G_i}: what is left of token i at the end */
  real total;           /* e^{G_n} */
} chunk_decay;

/* The same scratch for both passes; forward leaves the second half out. Matrices (CHUNK, CHUNK) have rows CHUNK apart. */
typedef struct chunk_scratch {
  real *decay;    /* (C,C) e^{G_i - G_j}, 0 above the diagonal */
  real *score;    /* (C,C) A */
  real *feedback; /* (C,C) L with beta_j (forward) or beta_i (backward) */
  real *inverse;  /* (C,C) (I + L)^{-1} */
  real *merge;    /* (C,C) */
  real *state;    /* (K,V) S, or its gradient */
  real *values;   /* (C,V) */
  real *rest;     /* (C,V) */

  real *score_gradient;    /* (C,C) */
  real *feedback_gradient; /* (C,C) */
  real *output;            /* (C,V) */
  real *carried;           /* (C,V) */
  real *keys;              /* (C,K) */
} chunk_scratch;

/* Lays the scratch out from `base` on and returns its size in reals. */
static int64_t lay_out(chunk_scratch *s, real *base, int64_t K, int64_t V, bool backward) {
  struct {
    real **array;
    int64_t size;
  } const part[] = {
      {&s->decay, MATRIX},          {&s->score, MATRIX},
      {&s->feedback, MATRIX},       {&s->inverse, MATRIX},
      {&s->merge, MATRIX},          {&s->state, K * V},
      {&s->values, CHUNK * V},      {&s->rest, CHUNK * V},
      {&s->score_gradient, MATRIX}, {&s->feedback_gradient, MATRIX},
      {&s->output, CHUNK * V},      {&s->carried, CHUNK * V},
      {&s->keys, CHUNK * K},
  };
  enum { FORWARD_PARTS = 8, PARTS = sizeof part / sizeof *part };
  int64_t offset = 0;
  for (int i = 0; i < (backward ? PARTS : FORWARD_PARTS); i++) {
    *part[i].array = base ? base + offset : NULL;
    offset += (part[i].size + 15) / 16 * 16;
  }
  return offset;
}

int64_t COMBA_VARIANT(comba_delta_rule_chunk_scratch)(int64_t K, int64_t V, bool backward) {
  chunk_scratch s;
  return lay_out(&s, NULL, K, V, backward);
}

/* ---- What forward and backward need of a chunk -------------------------------------------------------------------- */

/* The powers of e of n tokens, gates `stride` apart. Sums of gates run in double: a float sum forgets a weak gate next to a
 * saturated one. Above the diagonal the matrix holds 1 or 0, which its readers mask: not what the scratch held, as denormal
 * numbers are slow. */
static void find_decay(int64_t n, const real *g, int64_t stride, bool after_decay, chunk_decay *d, real *matrix) {
  double sum = 0, sums[CHUNK], feedback[CHUNK];
  for (int64_t i = 0; i < CHUNK; i++) {
    feedback[i] = sum;
    if (i < n) sum += (double)g[i * stride];
    sums[i] = sum;
  }
  if (after_decay) memcpy(feedback, sums, sizeof sums);
  for (int64_t i = 0; i < CHUNK; i++) {
    d->in[i] = scan_decay((real)sums[i]);
    d->feedback[i] = scan_decay((real)feedback[i]);
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

/* score = tril(scale e^{G_i - G_j} q_i k_j) column[j], feedback = stril(e^{P_i - G_j} p_i k_j) row[i] column[j]; rows from n on of
 * feedback are 0. */
static void find_scores(const delta_rule_head *h, int64_t n, const real *q, const real *k, const real *p,
                        const real *row, const real *column, chunk_scratch *s) {
  const int64_t stride = h->key_stride;
  comba_gemm_serial('N', 'T', n, n, h->K, h->scale, q, stride, k, stride, 0, s->score, CHUNK);
  comba_gemm_serial('N', 'T', n, n, h->K, 1, p, stride, k, stride, 0, s->feedback, CHUNK);
  for (int64_t i = 0; i < n; i++) {
    real *score = s->score + i * CHUNK, *feedback = s->feedback + i * CHUNK;
    const real *decay = s->decay + i * CHUNK, beta = row[i];
    /* P_i = G_{i-1} before decay; row 0 has no j < i */
    const real *feedback_decay = h->after_decay || !i ? decay : decay - CHUNK;
#pragma omp simd
    for (int64_t j = 0; j < CHUNK; j++) {
      const real a = score[j] * decay[j] * column[j], l = feedback[j] * feedback_decay[j] * beta * column[j];
      score[j] = j <= i ? a : 0;
      feedback[j] = j < i ? l : 0;
    }
  }
  memset(s->feedback + n * CHUNK, 0, (size_t)((CHUNK - n) * CHUNK) * sizeof(real));
}

/* ---- Forward ------------------------------------------------------------------------------------------------------ */

static void forward_chunk(const delta_rule_head *h, int64_t start, int64_t n, chunk_scratch *s) {
  const int64_t K = h->K, V = h->V, stride = h->key_stride;
  const real *q = h->q + start * stride, *k = h->k + start * stride, *p = h->p + start * stride;
  const real *v = h->v + start * h->value_stride, *beta = h->beta + start * h->value_heads;
  real *o = h->o + start * h->value_stride;
  real *errors = h->errors ? h->errors + start * h->value_stride : s->rest;
  const int64_t error_stride = h->errors ? h->value_stride : V;
  chunk_decay d;
  find_decay(n, h->g + start * h->value_heads, h->value_heads, h->after_decay, &d, s->decay);
  real betas[CHUNK] = {0}, ones[CHUNK];
  for (int64_t j = 0; j < CHUNK; j++) ones[j] = 1;
  for (int64_t j = 0; j < n; j++) betas[j] = beta[j * h->value_heads];
  find_scores(h, n, q, k, p, ones, betas, s);
  COMBA_VARIANT(comba_unit_lower_inverse)(n, s->feedback, s->inverse, s->merge);

  comba_gemm_serial('N', 'N', n, V, K, 1, p, stride, s->state, V, 0, s->values, V);
  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t c = 0; c < V; c++)
      s->values[i * V + c] = v[i * h->value_stride + c] - d.feedback[i] * s->values[i * V + c];
  comba_gemm_serial('N', 'N', n, V, n, 1, s->inverse, CHUNK, s->values, V, 0, errors, error_stride);

  comba_gemm_serial('N', 'N', n, V, K, h->scale, q, stride, s->state, V, 0, o, h->value_stride);
  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t c = 0; c < V; c++) o[i * h->value_stride + c] *= d.in[i];
  comba_gemm_serial('N', 'N', n, V, n, 1, s->score, CHUNK, errors, error_stride, 1, o, h->value_stride);

  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t c = 0; c < V; c++) s->values[i * V + c] = betas[i] * d.out[i] * errors[i * error_stride + c];
  comba_gemm_serial('T', 'N', K, V, n, 1, k, stride, s->values, V, d.total, s->state, V);
}

void COMBA_VARIANT(comba_delta_rule_chunk_forward)(const delta_rule_head *h, real *scratch) {
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

/* A gate lies between tokens: g_t scales every path from a token j < t (or from S) to a token i >= t (or to S'). Sums over
 * just these paths keep dg exact where gates are saturated; differences of sums over all paths would not. */
typedef struct gate_paths {
  real from_state[CHUNK + 1]; /* from S to the state that token i reads */
  real to_state[CHUNK];       /* from token j to S' */
  real across;                /* from S to S' */
  real between[CHUNK];        /* from tokens j < t to tokens i >= t; entry t */
} gate_paths;

static void gate_gradient(const delta_rule_head *h, int64_t start, int64_t n, const gate_paths *paths) {
  if (!h->dg) return;
  real *dg = h->dg + start * h->value_heads;
  real sums[CHUNK], sum = paths->across;
  for (int64_t t = 0; t < n; t++) {
    sums[t] = sum + paths->between[t];
    sum += paths->to_state[t];
  }
  sum = 0;
  for (int64_t t = n - 1; t >= 0; t--) {
    sum += paths->from_state[t];
    real *to = dg + t * h->value_heads;
    *to = (h->accumulate[GATE] ? *to : 0) + sums[t] + sum;
  }
}

/* From F_ij = do_i (beta e)_j in score_gradient and H_ij = y_i (beta e)_j in feedback_gradient to the gradients of q_i k_j and
 * p_i k_j, and to the paths between the chunk's own tokens. */
static void score_gradients(const delta_rule_head *h, int64_t n, const real *betas, chunk_scratch *s,
                            gate_paths *paths) {
  const int64_t lag = h->after_decay ? 0 : 1; /* feedback at token i reads the state that token i - lag left decayed */
  real paths_from[CHUNK] = {0};               /* entry j: paths from token j to tokens i >= t */
  for (int64_t t = n - 1; t >= 0; t--) {
    if (t + lag < n) {
      const real *feedback = s->feedback + (t + lag) * CHUNK, *gradient = s->feedback_gradient + (t + lag) * CHUNK;
#pragma omp simd
      for (int64_t j = 0; j < CHUNK; j++) paths_from[j] -= j < t ? feedback[j] * gradient[j] : 0;
    }
    const real *score = s->score + t * CHUNK, *gradient = s->score_gradient + t * CHUNK;
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < CHUNK; j++) {
      paths_from[j] = j < t ? paths_from[j] + score[j] * gradient[j] : 0;
      sum += paths_from[j];
    }
    paths->between[t] = sum;
  }
  for (int64_t i = 0; i < n; i++) {
    real *score = s->score_gradient + i * CHUNK, *feedback = s->feedback_gradient + i * CHUNK;
    const real *decay = s->decay + i * CHUNK, *feedback_decay = i ? decay - lag * CHUNK : decay;
    const real scale = h->scale, minus_beta = -betas[i];
#pragma omp simd
    for (int64_t j = 0; j < CHUNK; j++) {
      const real a = score[j] * decay[j] * scale, l = feedback[j] * feedback_decay[j] * minus_beta;
      score[j] = j <= i ? a : 0;
      feedback[j] = j < i ? l : 0;
    }
  }
}

/* to (n,K), rows `stride` apart, = or += from (n,K); inner[i] = from_i x_i. */
static void add_rows(int64_t n, int64_t K, const real *from, const real *x, int64_t stride, bool accumulate, real *to,
                     real *inner) {
  for (int64_t i = 0; i < n; i++) {
    inner[i] = scan_dot(from + i * K, x + i * stride, K);
    if (!to) continue;
    if (accumulate)
      for (int64_t c = 0; c < K; c++) to[i * stride + c] += from[i * K + c];
    else
      memcpy(to + i * stride, from + i * K, (size_t)K * sizeof(real));
  }
}

/* s->state holds the gradient of S' on entry and that of S on return. */
static void backward_chunk(const delta_rule_head *h, int64_t start, int64_t n, chunk_scratch *s) {
  const int64_t K = h->K, V = h->V, stride = h->key_stride, value_stride = h->value_stride;
  const real *q = h->q + start * stride, *k = h->k + start * stride, *p = h->p + start * stride;
  const real *errors = h->errors + start * value_stride, *state = h->states + start / CHUNK * h->state_stride;
  real *dq = h->dq ? h->dq + start * stride : NULL, *dk = h->dk ? h->dk + start * stride : NULL;
  real *dp = h->dp ? h->dp + start * stride : NULL;
  chunk_decay d;
  gate_paths paths;
  real betas[CHUNK] = {0}, ones[CHUNK], inner[CHUNK];
  for (int64_t j = 0; j < CHUNK; j++) ones[j] = 1;
  for (int64_t j = 0; j < n; j++) betas[j] = h->beta[(start + j) * h->value_heads];

  /* the matrices again, now with beta on the rows of L: beta e = (I + L)^{-1} beta (v - ...), whose transpose is wanted */
  find_decay(n, h->g + start * h->value_heads, h->value_heads, h->after_decay, &d, s->decay);
  find_scores(h, n, q, k, p, betas, ones, s);
  COMBA_VARIANT(comba_unit_lower_inverse)(n, s->feedback, s->inverse, s->merge);

  /* rest = beta e; values = its gradient through S' and o, then through later feedback as well: y */
  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t c = 0; c < V; c++) s->rest[i * V + c] = betas[i] * errors[i * value_stride + c];
  comba_gemm_serial('N', 'N', n, V, K, 1, k, stride, s->state, V, 0, s->carried, V);
  for (int64_t i = 0; i < n; i++) {
#pragma omp simd
    for (int64_t c = 0; c < V; c++) s->carried[i * V + c] *= d.out[i];
    paths.to_state[i] = scan_dot(s->carried + i * V, s->rest + i * V, V);
  }
  const real *output_gradient = h->output_gradient ? h->output_gradient + start * value_stride : s->output;
  const int64_t output_stride = h->output_gradient ? value_stride : V;
  if (!h->output_gradient) memset(s->output, 0, (size_t)(n * V) * sizeof(real));
  comba_gemm_serial('T', 'N', n, V, n, 1, s->score, CHUNK, output_gradient, output_stride, 1, s->carried, V);
  comba_gemm_serial('T', 'N', n, V, n, 1, s->inverse, CHUNK, s->carried, V, 0, s->values, V);
  comba_gemm_serial('N', 'T', n, n, V, 1, output_gradient, output_stride, s->rest, V, 0, s->score_gradient, CHUNK);
  comba_gemm_serial('N', 'T', n, n, V, 1, s->values, V, s->rest, V, 0, s->feedback_gradient, CHUNK);
  score_gradients(h, n, betas, s, &paths);

  for (int64_t i = 0; i < n; i++) {
    real *y = s->values + i * V, *output = s->output + i * V, *value = s->rest + i * V;
    if (h->dbeta) {
      real *to = h->dbeta + (start + i) * h->value_heads;
      *to = (h->accumulate[BETA] ? *to : 0) + scan_dot(y, errors + i * value_stride, V);
    }
    if (h->dv) {
      real *to = h->dv + (start + i) * value_stride;
      if (h->accumulate[VALUE])
        for (int64_t c = 0; c < V; c++) to[c] += betas[i] * y[c];
      else
        for (int64_t c = 0; c < V; c++) to[c] = betas[i] * y[c];
    }
    const real read = -betas[i] * d.feedback[i], written = h->scale * d.in[i];
#pragma omp simd
    for (int64_t c = 0; c < V; c++) {
      y[c] *= read;                                                 /* the gradient of p_i S */
      output[c] = written * output_gradient[i * output_stride + c]; /* of q_i S */
      value[c] *= d.out[i];                                         /* what token i leaves in S' */
    }
  }

  comba_gemm_serial('N', 'T', n, K, V, 1, s->output, V, state, V, 0, s->keys, K);
  add_rows(n, K, s->keys, q, stride, h->accumulate[Q], dq, paths.from_state);
  if (dq) comba_gemm_serial('N', 'N', n, K, n, 1, s->score_gradient, CHUNK, k, stride, 1, dq, stride);
  if (dk) {
    comba_gemm_serial('T', 'N', n, K, n, 1, s->score_gradient, CHUNK, q, stride, h->accumulate[KEY], dk, stride);
    comba_gemm_serial('T', 'N', n, K, n, 1, s->feedback_gradient, CHUNK, p, stride, 1, dk, stride);
    comba_gemm_serial('N', 'T', n, K, V, 1, s->rest, V, s->state, V, 1, dk, stride);
  }
  comba_gemm_serial('N', 'T', n, K, V, 1, s->values, V, state, V, 0, s->keys, K);
  add_rows(n, K, s->keys, p, stride, h->accumulate[P], dp, inner);
  if (dp) comba_gemm_serial('N', 'N', n, K, n, 1, s->feedback_gradient, CHUNK, k, stride, 1, dp, stride);
  for (int64_t i = h->after_decay ? 0 : 1; i < n; i++) paths.from_state[i - !h->after_decay] += inner[i];
  double across = 0; /* K V terms: by rows, and the rows in double */
  for (int64_t i = 0; i < K; i++) across += (double)scan_dot(state + i * V, s->state + i * V, V);
  paths.across = d.total * (real)across;
  gate_gradient(h, start, n, &paths);

  comba_gemm_serial('T', 'N', K, V, n, 1, q, stride, s->output, V, d.total, s->state, V);
  comba_gemm_serial('T', 'N', K, V, n, 1, p, stride, s->values, V, 1, s->state, V);
}

void COMBA_VARIANT(comba_delta_rule_chunk_backward)(const delta_rule_head *h, real *scratch) {
  chunk_scratch s;
  lay_out(&s, scratch, h->K, h->V, true);
  const int64_t size = h->K * h->V;
  scan_load_state(s.state, h->final_state_gradient, size);
  for (int64_t start = (h->length - 1) / CHUNK * CHUNK; start >= 0 && h->length; start -= CHUNK)
    backward_chunk(h, start, h->length - start < CHUNK ? h->length - start : CHUNK, &s);
  scan_store_gradient(h->initial_state_gradient, s.state, size, h->accumulate[INITIAL_STATE]);
}
