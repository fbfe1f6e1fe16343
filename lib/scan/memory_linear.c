/* A chunk of a linear memory by matrix products. What running and velocity are after i tokens is a sum over what came before,
 * with a mask from the gates (mask_of):
 *   running_i  = f_i running_0 + h_i velocity_0 - sum_{j<=i} c_ij rate_j k_j n_j^T
 *   velocity_i = p_i0 velocity_0 - sum_{j<=i} p_ij rate_j k_j n_j^T
 * and token i reads (1 - w_i) frozen + w_i running_i. */
#include "scan/chunk_product.h"
#include "scan/memory.h"

/* Row i is what token i sees of running_0, velocity_0 and the tokens up to it; rows and columns count from 1, and 0 is the
 * start. Without momentum velocity_i is token i's step alone, so that c_ij is a product of e^g. */
typedef struct mask {
  real f[CHUNK + 1];
  real c[CHUNK + 1][CHUNK + 1], p[CHUNK + 1][CHUNK + 1]; /* column 0: h, p_i0 */
} mask;

static void mask_of(const memory_chunk *x, mask *m) {
  memset(m->c[0], 0, sizeof m->c[0]);
  memset(m->p[0], 0, sizeof m->p[0]);
  m->f[0] = m->p[0][0] = 1;
  for (int64_t i = 1; i <= x->n; i++) {
    const real retain = x->retain[i - 1], keep = x->keep[i - 1];
#pragma omp simd
    for (int64_t j = 0; j < i; j++) {
      m->p[i][j] = keep * m->p[i - 1][j];
      m->c[i][j] = retain * m->c[i - 1][j] + m->p[i][j];
    }
    m->c[i][i] = m->p[i][i] = 1;
    m->f[i] = retain * m->f[i - 1];
  }
}

/* The gradients of the gates, from those of f, c and p, which are overwritten. */
static void mask_backward(const memory_chunk *x, const mask *m, mask *g, real *retain, real *keep) {
  for (int64_t i = x->n; i >= 1; i--) {
    real to_retain = g->f[i] * m->f[i - 1], to_keep = 0;
    g->f[i - 1] += x->retain[i - 1] * g->f[i];
#pragma omp simd reduction(+ : to_retain, to_keep)
    for (int64_t j = 0; j < i; j++) {
      g->p[i][j] += g->c[i][j];
      to_retain += g->c[i][j] * m->c[i - 1][j];
      to_keep += g->p[i][j] * m->p[i - 1][j];
      g->c[i - 1][j] += x->retain[i - 1] * g->c[i][j];
      g->p[i - 1][j] += x->keep[i - 1] * g->p[i][j];
    }
    retain[i - 1] = to_retain;
    keep[i - 1] = to_keep;
  }
}

/* How much of frozen, running_0 and velocity_0 token i reads; in a fresh chunk the first two are one. */
static real frozen_share(const memory_chunk *x, int64_t i) {
  return 1 - x->weight[i];
}
static real running_share(const memory_chunk *x, const mask *m, int64_t i) {
  return x->weight[i] * m->f[i + 1] + (x->fresh ? frozen_share(x, i) : 0);
}
static real velocity_share(const memory_chunk *x, const mask *m, int64_t i) {
  return x->weight[i] * m->c[i + 1][0];
}

typedef struct linear_scratch {
  real *rows_a, *rows_b;   /* (n,R) */
  real *values;            /* (n,V) */
  real *scores, *products; /* (n,n) */
} linear_scratch;

static linear_scratch lay_out(real *base, int64_t n, int64_t R, int64_t V) {
  real *const values = base + 2 * n * R, *const scores = values + n * V;
  return (linear_scratch){base, base + n * R, values, scores, scores + n * n};
}

int64_t COMBA_VARIANT(comba_memory_linear_scratch)(int64_t chunk, int64_t R, int64_t V) {
  return chunk * (2 * R + V + 2 * chunk);
}

/* to (n,width) = share_i from_i */
static void scale_rows(const memory_chunk *x, int64_t width, const real *share, const real *from, real *to) {
  for (int64_t i = 0; i < x->n; i++)
    for (int64_t c = 0; c < width; c++) to[i * width + c] = share[i] * from[i * width + c];
}

static bool reads_frozen(const memory_chunk *x) {
  return x->token_weight && !x->fresh;
}

/* ---- Forward ------------------------------------------------------------------------------------------------------- */

/* o += share_i memory^T q_i */
static void read(const memory_chunk *x, const real *share, const real *memory, real beta, real *o, int64_t stride,
                 real *rows) {
  scale_rows(x, x->R, share, x->q, rows);
  chunk_product('N', 'N', x->n, x->V, x->R, 1, rows, x->R, memory, x->V, beta, o, stride);
}

/* memory = factor memory - end sum_j mask_j rate_j k_j n_j^T */
static void gather(const memory_chunk *x, const real *row, real end, real factor, real *memory, real *rows) {
  real share[CHUNK];
  for (int64_t j = 0; j < x->n; j++) share[j] = row[j + 1] * x->rate[j];
  scale_rows(x, x->R, share, x->k, rows);
  chunk_product('T', 'N', x->R, x->V, x->n, -end, rows, x->R, x->gradient, x->V, factor, memory, x->V);
}

void COMBA_VARIANT(comba_memory_linear_forward)(const memory_chunk *x, real *o, int64_t stride) {
  const int64_t n = x->n, R = x->R, V = x->V;
  const linear_scratch s = lay_out(x->scratch, n, R, V);
  mask m;
  real share[CHUNK];
  mask_of(x, &m);
  for (int64_t i = 0; i < n; i++) share[i] = running_share(x, &m, i);
  read(x, share, x->running, 0, o, stride, s.rows_a);
  if (reads_frozen(x)) {
    for (int64_t i = 0; i < n; i++) share[i] = frozen_share(x, i);
    read(x, share, x->frozen, 1, o, stride, s.rows_a);
  }
  if (x->momentum) {
    for (int64_t i = 0; i < n; i++) share[i] = velocity_share(x, &m, i);
    read(x, share, x->velocity, 1, o, stride, s.rows_a);
  }
  chunk_product('N', 'T', n, n, R, 1, x->q, R, x->k, R, 0, s.scores, n);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = 0; j <= i; j++) s.scores[i * n + j] *= x->weight[i] * m.c[i + 1][j + 1] * x->rate[j];
    for (int64_t j = i + 1; j < n; j++) s.scores[i * n + j] = 0;
  }
  chunk_product('N', 'N', n, V, n, -1, s.scores, n, x->gradient, V, 1, o, stride);

  const real end = x->in_place ? x->weight[n - 1] : 1; /* what the last token reads is the next memory */
  gather(x, m.c[n], end, 1 - end + end * m.f[n], x->running, s.rows_a);
  if (!x->momentum) return;
  const real to_running = end * m.c[n][0];
  for (int64_t i = 0; i < R * V; i++) x->running[i] += to_running * x->velocity[i];
  gather(x, m.p[n], 1, m.p[n][0], x->velocity, s.rows_a);
}

/* ---- Backward ------------------------------------------------------------------------------------------------------ */

/* What reads of a start matrix leave: the query's gradient, that of the share, and of the matrix,
 * gradient = factor gradient + sum_i share_i q_i do_i^T. to_share[i] = <do_i, matrix^T q_i>. */
static void read_backward(const memory_chunk *x, const memory_chunk_gradient *g, const real *share, const real *matrix,
                          real factor, real *matrix_gradient, real *to_share, const linear_scratch *s) {
  const int64_t n = x->n, R = x->R, V = x->V;
  chunk_product('N', 'T', n, R, V, 1, g->o, V, matrix, V, 0, s->rows_a, R);
  for (int64_t i = 0; i < n; i++) {
    to_share[i] = scan_dot(x->q + i * R, s->rows_a + i * R, R);
    for (int64_t c = 0; c < R; c++) g->q[i * R + c] += share[i] * s->rows_a[i * R + c];
  }
  scale_rows(x, R, share, x->q, s->rows_b);
  chunk_product('T', 'N', R, V, n, 1, s->rows_b, R, g->o, V, factor, matrix_gradient, V);
}

/* What the end matrix E = ... - sum_j row_j rate_j k_j n_j^T, with the gradient G of which `end` counts, leaves to the keys, the
 * rows n_j and the mask's row; inner[j] = <k_j, G n_j> rate_j. */
static void gather_backward(const memory_chunk *x, memory_chunk_gradient *g, const real *row, const real *G, real end,
                            real *row_gradient, real *inner, const linear_scratch *s) {
  const int64_t n = x->n, R = x->R, V = x->V;
  chunk_product('N', 'T', n, R, V, 1, x->gradient, V, G, V, 0, s->rows_a, R);
  chunk_product('N', 'N', n, V, R, 1, x->k, R, G, V, 0, s->values, V);
  for (int64_t j = 0; j < n; j++) {
    const real share = end * row[j + 1] * x->rate[j], product = scan_dot(x->k + j * R, s->rows_a + j * R, R);
    for (int64_t c = 0; c < R; c++) g->k[j * R + c] -= share * s->rows_a[j * R + c];
    for (int64_t c = 0; c < V; c++) g->gradient[j * V + c] -= share * s->values[j * V + c];
    inner[j] = x->rate[j] * product;
    row_gradient[j + 1] -= end * inner[j];
    g->rate[j] -= end * row[j + 1] * product;
  }
}

static real inner_product(const real *a, const real *b, int64_t rows, int64_t width) {
  double sum = 0;
  for (int64_t i = 0; i < rows; i++) sum += (double)scan_dot(a + i * width, b + i * width, width);
  return (real)sum;
}

/* Scores q_i k_j and what came out of them. */
static void scores_backward(const memory_chunk *x, memory_chunk_gradient *g, const mask *m, mask *dm,
                            const linear_scratch *s) {
  const int64_t n = x->n, R = x->R, V = x->V;
  chunk_product('N', 'T', n, n, R, 1, x->q, R, x->k, R, 0, s->scores, n);
  chunk_product('N', 'T', n, n, V, 1, g->o, V, x->gradient, V, 0, s->products, n);
  for (int64_t i = 0; i < n; i++) {
    real *scores = s->scores + i * n, *products = s->products + i * n, *to_c = dm->c[i + 1] + 1, to_weight = 0;
    const real *c = m->c[i + 1] + 1, weight = x->weight[i];
#pragma omp simd reduction(+ : to_weight)
    for (int64_t j = 0; j <= i; j++) {
      const real both = scores[j] * products[j], share = c[j] * x->rate[j];
      to_weight += share * both;
      to_c[j] -= weight * x->rate[j] * both;
      g->rate[j] -= weight * c[j] * both;
      scores[j] *= weight * share;
      products[j] *= weight * share;
    }
    for (int64_t j = i + 1; j < n; j++) scores[j] = products[j] = 0;
    g->weight[i] -= to_weight;
  }
  chunk_product('T', 'N', n, V, n, -1, s->scores, n, g->o, V, 0, g->gradient, V);
  chunk_product('N', 'N', n, R, n, -1, s->products, n, x->k, R, 0, g->q, R);
  chunk_product('T', 'N', n, R, n, -1, s->products, n, x->q, R, 0, g->k, R);
}

void COMBA_VARIANT(comba_memory_linear_backward)(const memory_chunk *x, memory_chunk_gradient *g) {
  const int64_t n = x->n, R = x->R, V = x->V;
  const linear_scratch s = lay_out(x->scratch, n, R, V);
  mask m, dm;
  real share[CHUNK], to_share[CHUNK], inner[CHUNK];
  mask_of(x, &m);
  for (int64_t i = 0; i <= n; i++) {
    dm.f[i] = 0;
    memset(dm.c[i], 0, (size_t)(n + 1) * sizeof(real));
    memset(dm.p[i], 0, (size_t)(n + 1) * sizeof(real));
  }
  memset(g->rate, 0, (size_t)n * sizeof(real));
  memset(g->weight, 0, (size_t)n * sizeof(real));
  scores_backward(x, g, &m, &dm, &s);
  gather_backward(x, g, m.c[n], g->running, g->end, dm.c[n], inner, &s);
  const real across = inner_product(g->running, x->running, R, V);
  dm.f[n] += g->end * across;
  if (x->token_weight && g->committed) {
    real to_weight = m.f[n] * across - (x->fresh ? across : inner_product(g->running, x->frozen, R, V));
    for (int64_t j = 0; j < n; j++) to_weight -= m.c[n][j + 1] * inner[j];
    g->weight[n - 1] += to_weight;
    for (int64_t i = 0; !x->in_place && i < R * V; i++) g->frozen[i] += (1 - g->end) * g->running[i];
  }
  if (x->momentum) {
    gather_backward(x, g, m.p[n], g->velocity, 1, dm.p[n], inner, &s);
    const real across_velocity = inner_product(g->running, x->velocity, R, V);
    dm.p[n][0] += inner_product(g->velocity, x->velocity, R, V);
    dm.c[n][0] += g->end * across_velocity;
    if (g->committed) g->weight[n - 1] += m.c[n][0] * across_velocity;
    for (int64_t i = 0; i < R * V; i++)
      g->velocity[i] = m.p[n][0] * g->velocity[i] + g->end * m.c[n][0] * g->running[i];
    for (int64_t i = 0; i < n; i++) share[i] = velocity_share(x, &m, i);
    read_backward(x, g, share, x->velocity, 1, g->velocity, to_share, &s);
    for (int64_t i = 0; i < n; i++) {
      g->weight[i] += m.c[i + 1][0] * to_share[i];
      dm.c[i + 1][0] += x->weight[i] * to_share[i];
    }
  }
  for (int64_t i = 0; i < n; i++) share[i] = running_share(x, &m, i);
  const real kept = (x->in_place ? 1 - g->end : 0) + g->end * m.f[n];
  read_backward(x, g, share, x->running, kept, g->running, to_share, &s);
  for (int64_t i = 0; i < n; i++) {
    dm.f[i + 1] += x->weight[i] * to_share[i];
    g->weight[i] += (m.f[i + 1] - (x->fresh ? 1 : 0)) * to_share[i];
  }
  if (reads_frozen(x)) {
    for (int64_t i = 0; i < n; i++) share[i] = frozen_share(x, i);
    read_backward(x, g, share, x->frozen, 1, g->frozen, to_share, &s);
    for (int64_t i = 0; i < n; i++) g->weight[i] -= to_share[i];
  }
  if (x->gated) mask_backward(x, &m, &dm, g->retain, g->keep);
}
