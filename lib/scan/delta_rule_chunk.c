/* The delta rule in chunks of C = 64 tokens. S is the state (K,V) before the chunk, i and j its tokens, G the inclusive sums
 * of g in it, P_i = G_i with feedback after decay, else G_{i-1}. Unrolling the recurrence inside the chunk:
 *   L_ij = e^{P_i - G_j} (p_i k_j) beta_j, j < i         errors e = (I + L)^{-1} (v - e^P (p S))
 *   A_ij = scale e^{G_i - G_j} (q_i k_j), j <= i         o = scale e^G (q S) + A (beta e)
 *   S' = e^{G_n} S + k^T (e^{G_n - G} beta e)
 * Without an initial state S is 0 in the first chunk, and without a gradient of the final state so is the gradient of S' in the
 * last: their products are left out. No exponent is above 0. Matrix products work in place on the strided rows of q, k, p, v and o; a right operand that would
 * have to be transposed is turned once for all products that read it. */
#include "core/vector.h"
#include "scan/chunk_product.h"
#include "scan/delta_rule.h"

enum { MATRIX = CHUNK * CHUNK };

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
  real *turned;   /* a right operand transposed, see turned_size */

  real *score_gradient;    /* (C,C) */
  real *feedback_gradient; /* (C,C) */
  real *output;            /* (C,V) */
  real *carried;           /* (C,V) */
  real *keys;              /* (C,K) */
} chunk_scratch;

static int64_t whole_blocks(int64_t n) {
  return (n + BLOCK - 1) / BLOCK * BLOCK;
}

/* (K,C) or, in backward, (V,C), and the state as (V,K) */
static int64_t turned_size(int64_t K, int64_t V, bool backward) {
  const int64_t width = V > K ? V : K, state = whole_blocks(K) * V;
  if (!backward) return K * CHUNK;
  return state > width * CHUNK ? state : width * CHUNK;
}

/* Lays the scratch out from `base` on and returns its size in reals. */
static int64_t lay_out(chunk_scratch *s, real *base, int64_t K, int64_t V, bool backward) {
  struct {
    real **array;
    int64_t size;
  } const part[] = {
      {&s->decay, MATRIX},
      {&s->score, MATRIX},
      {&s->feedback, MATRIX},
      {&s->inverse, MATRIX},
      {&s->merge, MATRIX},
      {&s->state, K * V},
      {&s->values, CHUNK * V},
      {&s->rest, CHUNK * V},
      {&s->turned, turned_size(K, V, backward)},
      {&s->score_gradient, MATRIX},
      {&s->feedback_gradient, MATRIX},
      {&s->output, CHUNK * V},
      {&s->carried, CHUNK * V},
      {&s->keys, CHUNK * K},
  };
  enum { FORWARD_PARTS = 9, PARTS = sizeof part / sizeof *part };
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

/* Rows [first, first + rows) of C (CHUNK,CHUNK) = alpha A (n,k) turned (k,CHUNK), in blocks up to the diagonal; 0 above. */
static void lower_rows(int64_t first, int64_t rows, int64_t k, real alpha, const real *a, int64_t lda,
                       const real *turned, real *c) {
  const int64_t columns = first + BLOCK;
  c += first * CHUNK;
  chunk_product('N', 'N', rows, columns, k, alpha, a + first * lda, lda, turned, CHUNK, 0, c, CHUNK);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = columns; j < CHUNK; j += LANES) *(vector *)(c + i * CHUNK + j) = (vector){0};
}

/* score = tril(scale e^{G_i - G_j} q_i k_j) column[j], feedback = stril(e^{P_i - G_j} p_i k_j) row[i] column[j]; rows from n on of
 * feedback are 0. */
static void find_scores(const delta_rule_head *h, int64_t n, const real *q, const real *k, const real *p,
                        const real *row, const real *column, chunk_scratch *s) {
  const int64_t stride = h->key_stride;
  chunk_transpose(n, h->K, k, stride, s->turned, CHUNK);
  for (int64_t first = 0; first < n; first += BLOCK) { /* rows that stay in the first-level cache */
    const int64_t rows = n - first < BLOCK ? n - first : BLOCK, columns = first + BLOCK;
    lower_rows(first, rows, h->K, h->scale, q, stride, s->turned, s->score);
    lower_rows(first, rows, h->K, 1, p, stride, s->turned, s->feedback);
    for (int64_t i = first; i < first + rows; i++) {
      real *score = s->score + i * CHUNK, *feedback = s->feedback + i * CHUNK;
      const real *decay = s->decay + i * CHUNK, beta = row[i];
      /* P_i = G_{i-1} before decay; row 0 has no j < i */
      const real *feedback_decay = h->after_decay || !i ? decay : decay - CHUNK;
#pragma omp simd
      for (int64_t j = 0; j < columns; j++) {
        const real a = score[j] * decay[j] * column[j], l = feedback[j] * feedback_decay[j] * beta * column[j];
        score[j] = j <= i ? a : 0;
        feedback[j] = j < i ? l : 0;
      }
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
  const bool empty = !start && !h->initial_state; /* S = 0 */
  chunk_decay d;
  chunk_find_decay(n, h->g + start * h->value_heads, h->value_heads, &d, s->decay);
  const real *feedback_decay = h->after_decay ? d.in : d.before;
  real betas[CHUNK] = {0}, ones[CHUNK];
  for (int64_t j = 0; j < CHUNK; j++) ones[j] = 1;
  for (int64_t j = 0; j < n; j++) betas[j] = beta[j * h->value_heads];
  find_scores(h, n, q, k, p, ones, betas, s);
  COMBA_VARIANT(comba_unit_lower_inverse)(n, s->feedback, s->inverse, s->merge);

  if (empty) {
    chunk_triangle_product('N', n, V, 1, s->inverse, CHUNK, v, h->value_stride, 0, errors, error_stride);
  } else {
    chunk_product('N', 'N', n, V, K, 1, p, stride, s->state, V, 0, s->values, V);
    for (int64_t i = 0; i < n; i++)
#pragma omp simd
      for (int64_t c = 0; c < V; c++)
        s->values[i * V + c] = v[i * h->value_stride + c] - feedback_decay[i] * s->values[i * V + c];
    chunk_triangle_product('N', n, V, 1, s->inverse, CHUNK, s->values, V, 0, errors, error_stride);
    chunk_product('N', 'N', n, V, K, h->scale, q, stride, s->state, V, 0, o, h->value_stride);
    for (int64_t i = 0; i < n; i++)
#pragma omp simd
      for (int64_t c = 0; c < V; c++) o[i * h->value_stride + c] *= d.in[i];
  }
  chunk_triangle_product('N', n, V, 1, s->score, CHUNK, errors, error_stride, empty ? 0 : 1, o, h->value_stride);

  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t c = 0; c < V; c++) s->values[i * V + c] = betas[i] * d.out[i] * errors[i * error_stride + c];
  chunk_product('T', 'N', K, V, n, 1, k, stride, s->values, V, empty ? 0 : d.total, s->state, V);
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

/* Row i of the gradient of q_i k_j or p_i k_j, j < end, in the place of that of the score */
static void scale_row(int64_t i, int64_t end, real by, const real *decay, real *matrix) {
  const int64_t columns = i / BLOCK * BLOCK + BLOCK;
  real *row = matrix + i * CHUNK;
#pragma omp simd
  for (int64_t j = 0; j < columns; j++) {
    const real x = row[j] * decay[j] * by;
    row[j] = j < end ? x : 0;
  }
}

/* F_ij = do_i (beta e)_j and H_ij = y_i (beta e)_j, with beta e in `turned`, a block of rows at a time from the last; from them the
 * paths between the chunk's own tokens, and in their place the gradients of q_i k_j and p_i k_j. */
static void score_gradients(const delta_rule_head *h, int64_t n, const real *betas, const real *output_gradient,
                            int64_t output_stride, chunk_scratch *s, gate_paths *paths) {
  const int64_t lag = h->after_decay ? 0 : 1; /* feedback at token i reads the state that token i - lag left decayed */
  real paths_from[CHUNK] = {0};               /* entry j: paths from token j to tokens i >= t */
  for (int64_t first = (n - 1) / BLOCK * BLOCK; first >= 0; first -= BLOCK) {
    const int64_t rows = n - first < BLOCK ? n - first : BLOCK, columns = first + BLOCK;
    lower_rows(first, rows, h->V, 1, output_gradient, output_stride, s->turned, s->score_gradient);
    lower_rows(first, rows, h->V, 1, s->values, h->V, s->turned, s->feedback_gradient);
    for (int64_t t = first + rows - 1, i = t + lag; t >= first; t--, i--) {
      const real *decay = s->decay + t * CHUNK;
      if (i < n) {
        const real *feedback = s->feedback + i * CHUNK, *gradient = s->feedback_gradient + i * CHUNK;
#pragma omp simd
        for (int64_t j = 0; j < columns; j++) paths_from[j] -= j < t ? feedback[j] * gradient[j] : 0;
        scale_row(i, i, -betas[i], decay, s->feedback_gradient);
      }
      paths->between[t] = chunk_paths_past(t, s->score + t * CHUNK, s->score_gradient + t * CHUNK, paths_from);
      scale_row(t, t + 1, h->scale, decay, s->score_gradient);
    }
  }
  if (lag) memset(s->feedback_gradient, 0, CHUNK * sizeof(real)); /* row 0 */
}

/* s->state holds the gradient of S' on entry and that of S on return. */
static void backward_chunk(const delta_rule_head *h, int64_t start, int64_t n, chunk_scratch *s) {
  const int64_t K = h->K, V = h->V, stride = h->key_stride, value_stride = h->value_stride;
  const int64_t turned_stride = whole_blocks(K);
  const real *q = h->q + start * stride, *k = h->k + start * stride, *p = h->p + start * stride;
  const real *errors = h->errors + start * value_stride, *state = h->states + start / CHUNK * h->state_stride;
  real *dq = h->dq ? h->dq + start * stride : NULL, *dk = h->dk ? h->dk + start * stride : NULL;
  real *dp = h->dp ? h->dp + start * stride : NULL;
  const bool empty = !start && !h->initial_state;                       /* S = 0 */
  const bool last = start + n == h->length && !h->final_state_gradient; /* the gradient of S' is 0 */
  chunk_decay d;
  gate_paths paths = {0};
  real betas[CHUNK] = {0}, ones[CHUNK], inner[CHUNK] = {0};
  for (int64_t j = 0; j < CHUNK; j++) ones[j] = 1;
  for (int64_t j = 0; j < n; j++) betas[j] = h->beta[(start + j) * h->value_heads];

  scan_fetch(errors, n, V, value_stride);
  scan_fetch(h->output_gradient ? h->output_gradient + start * value_stride : NULL, n, V, value_stride);

  /* the matrices again, now with beta on the rows of L: beta e = (I + L)^{-1} beta (v - ...), whose transpose is wanted */
  chunk_find_decay(n, h->g + start * h->value_heads, h->value_heads, &d, s->decay);
  const real *feedback_decay = h->after_decay ? d.in : d.before;
  find_scores(h, n, q, k, p, betas, ones, s);
  COMBA_VARIANT(comba_unit_lower_inverse)(n, s->feedback, s->inverse, s->merge);

  /* rest = beta e; values = its gradient through S' and o, then through later feedback as well: y */
  for (int64_t i = 0; i < n; i++)
#pragma omp simd
    for (int64_t c = 0; c < V; c++) s->rest[i * V + c] = betas[i] * errors[i * value_stride + c];
  if (!last) chunk_product('N', 'N', n, V, K, 1, k, stride, s->state, V, 0, s->carried, V);
  for (int64_t i = 0; i < n && !last; i++) {
#pragma omp simd
    for (int64_t c = 0; c < V; c++) s->carried[i * V + c] *= d.out[i];
    paths.to_state[i] = scan_dot(s->carried + i * V, s->rest + i * V, V);
  }
  const real *output_gradient = h->output_gradient ? h->output_gradient + start * value_stride : s->output;
  const int64_t output_stride = h->output_gradient ? value_stride : V;
  if (!h->output_gradient) memset(s->output, 0, (size_t)(n * V) * sizeof(real));
  chunk_triangle_product('T', n, V, 1, s->score, CHUNK, output_gradient, output_stride, last ? 0 : 1, s->carried, V);
  chunk_triangle_product('T', n, V, 1, s->inverse, CHUNK, s->carried, V, 0, s->values, V);
  chunk_transpose(n, V, s->rest, V, s->turned, CHUNK);
  scan_fetch(h->dv ? h->dv + start * value_stride : NULL, n, V, value_stride);
  scan_fetch(dq, n, K, stride);
  scan_fetch(dk, n, K, stride);
  scan_fetch(dp, n, K, stride);
  score_gradients(h, n, betas, output_gradient, output_stride, s, &paths);

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
    const real read = -betas[i] * feedback_decay[i], written = h->scale * d.in[i];
#pragma omp simd
    for (int64_t c = 0; c < V; c++) {
      y[c] *= read;                                                 /* the gradient of p_i S */
      output[c] = written * output_gradient[i * output_stride + c]; /* of q_i S */
      value[c] *= d.out[i];                                         /* what token i leaves in S' */
    }
  }

  if (!empty) {
    chunk_transpose(K, V, state, V, s->turned, turned_stride);
    chunk_product('N', 'N', n, K, V, 1, s->output, V, s->turned, turned_stride, 0, s->keys, K);
    chunk_add_rows(n, K, s->keys, q, stride, h->accumulate[Q], dq, paths.from_state);
    chunk_product('N', 'N', n, K, V, 1, s->values, V, s->turned, turned_stride, 0, s->keys, K);
  }
  const real add_q = !empty || h->accumulate[Q] ? 1 : 0, add_p = !empty || h->accumulate[P] ? 1 : 0;
  if (dq) chunk_triangle_product('N', n, K, 1, s->score_gradient, CHUNK, k, stride, add_q, dq, stride);
  if (dk) { /* before dp, which may be the same */
    chunk_triangle_product('T', n, K, 1, s->score_gradient, CHUNK, q, stride, h->accumulate[KEY], dk, stride);
    chunk_triangle_product('T', n, K, 1, s->feedback_gradient, CHUNK, p, stride, 1, dk, stride);
    if (!last) {
      chunk_transpose(K, V, s->state, V, s->turned, turned_stride);
      chunk_product('N', 'N', n, K, V, 1, s->rest, V, s->turned, turned_stride, 1, dk, stride);
    }
  }
  if (!empty) chunk_add_rows(n, K, s->keys, p, stride, h->accumulate[P], dp, inner);
  if (dp) chunk_triangle_product('N', n, K, 1, s->feedback_gradient, CHUNK, k, stride, add_p, dp, stride);
  for (int64_t i = h->after_decay ? 0 : 1; i < n; i++) paths.from_state[i - !h->after_decay] += inner[i];
  if (!empty && !last) paths.across = chunk_across(d.total, state, s->state, K, V);
  chunk_gate_gradient(n, &paths, h->accumulate[GATE], h->dg ? h->dg + start * h->value_heads : NULL, h->value_heads);

  if (!start && !h->initial_state_gradient) return;
  chunk_product('T', 'N', K, V, n, 1, q, stride, s->output, V, last ? 0 : d.total, s->state, V);
  chunk_product('T', 'N', K, V, n, 1, p, stride, s->values, V, 1, s->state, V);
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
