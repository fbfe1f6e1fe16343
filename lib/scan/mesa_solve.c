/* Mesa's systems by conjugate gradients (Hestenes and Stiefel, 1952) from x = 0. The matrices of a chunk are never written out
 * in chunk form: a product with them is that of scalar decay, with P the directions (n,K) as queries,
 *   (H_t p_t) rows = e^G (P state) + A K,  A_ij = e^{G_i - G_j} beta_j (p_i k_j), j <= i
 * Token by token the matrix is kept, and a product costs K^2. */
#include "core/gemm.h"
#include "scan/mesa.h"

enum { MATRIX = CHUNK * CHUNK };

/* One token's step along p, w = (H + diag(lambda)) p: `square` is |r|^2, and its new value is returned; 0 ends the iteration.
 * A curvature that is not positive means that rounding has taken over. */
static real descend(int64_t K, real square, const real *w, real *x, real *r, real *p) {
  const real curvature = scan_dot(p, w, K);
  if (!(curvature > 0)) return 0;
  const real step = square / curvature;
  real next = 0;
#pragma omp simd reduction(+ : next)
  for (int64_t c = 0; c < K; c++) {
    x[c] += step * p[c];
    r[c] -= step * w[c];
    next += r[c] * r[c];
  }
  const real turn = next / square;
#pragma omp simd
  for (int64_t c = 0; c < K; c++) p[c] = r[c] + turn * p[c];
  return next;
}

/* ---- In chunks ---------------------------------------------------------------------------------------------------- */

/* Scratch: matrices (CHUNK, CHUNK) with rows CHUNK apart, and (CHUNK, K). */
typedef struct chunk_scratch {
  real *weight; /* e^{G_i - G_j} beta_j, 0 above the diagonal */
  real *score, *residual, *direction, *product, *solution;
} chunk_scratch;

int64_t COMBA_VARIANT(comba_mesa_chunk_scratch)(int64_t K) {
  return 2 * MATRIX + 4 * CHUNK * K;
}

static chunk_scratch lay_out(real *base, int64_t K) {
  real *const rows = base + 2 * MATRIX;
  return (chunk_scratch){base, base + MATRIX, rows, rows + CHUNK * K, rows + 2 * CHUNK * K, rows + 3 * CHUNK * K};
}

static void find_weights(const mesa_systems *m, chunk_decay *d, real *weight) {
  chunk_find_decay(m->n, m->g, m->gate_stride, d, weight);
  for (int64_t i = 0; i < m->n; i++)
    for (int64_t j = 0; j < m->n; j++)
      weight[i * CHUNK + j] = j <= i ? weight[i * CHUNK + j] * m->beta[j * m->gate_stride] : 0;
}

/* s->product = (H + diag(lambda)) s->direction, row by row */
static void multiply(const mesa_systems *m, const chunk_decay *d, const chunk_scratch *s) {
  const int64_t n = m->n, K = m->K;
  comba_gemm_serial('N', 'N', n, K, K, 1, s->direction, K, m->state, K, 0, s->product, K);
  comba_gemm_serial('N', 'T', n, n, K, 1, s->direction, K, m->k, m->stride, 0, s->score, CHUNK);
  for (int64_t i = 0; i < n; i++) {
    const real decay = d->in[i], *p = s->direction + i * K;
    real *w = s->product + i * K, *score = s->score + i * CHUNK;
#pragma omp simd
    for (int64_t c = 0; c < K; c++) w[c] = decay * w[c] + m->lambda[c] * p[c];
#pragma omp simd
    for (int64_t j = 0; j < n; j++) score[j] *= s->weight[i * CHUNK + j];
  }
  comba_gemm_serial('N', 'N', n, K, n, 1, s->score, CHUNK, m->k, m->stride, 1, s->product, K);
}

void COMBA_VARIANT(comba_mesa_chunk_solve)(const mesa_systems *m, real *scratch) {
  const int64_t n = m->n, K = m->K;
  const chunk_scratch s = lay_out(scratch, K);
  chunk_decay d;
  real square[CHUNK], enough[CHUNK];
  find_weights(m, &d, s.weight);
  memset(s.solution, 0, (size_t)(n * K) * sizeof(real));
  scan_copy_columns(n, K, m->b, m->stride, s.residual, K);
  memcpy(s.direction, s.residual, (size_t)(n * K) * sizeof(real));
  for (int64_t i = 0; i < n; i++) {
    square[i] = scan_dot(s.residual + i * K, s.residual + i * K, K);
    enough[i] = MESA_TOLERANCE * MESA_TOLERANCE * square[i];
  }
  bool active = true;
  for (int64_t step = 0; step < m->steps && active; step++) {
    active = false;
    multiply(m, &d, &s);
    for (int64_t i = 0; i < n; i++) {
      if (square[i] <= enough[i]) continue;
      const int64_t at = i * K;
      square[i] = descend(K, square[i], s.product + at, s.solution + at, s.residual + at, s.direction + at);
      active = true;
    }
  }
  scan_copy_columns(n, K, s.solution, K, m->x, m->stride);
}

/* ---- Token by token ----------------------------------------------------------------------------------------------- */

int64_t COMBA_VARIANT(comba_mesa_recurrent_scratch)(int64_t K) {
  return K * K + 4 * K;
}

/* H (K,K) = decay H + beta k k^T */
static void update(int64_t K, real decay, real beta, const real *k, real *H) {
  for (int64_t i = 0; i < K; i++) {
    const real key = beta * k[i];
#pragma omp simd
    for (int64_t c = 0; c < K; c++) H[i * K + c] = decay * H[i * K + c] + key * k[c];
  }
}

void COMBA_VARIANT(comba_mesa_recurrent_solve)(const mesa_systems *m, real *scratch) {
  const int64_t K = m->K;
  real *H = scratch, *x = H + K * K, *r = x + K, *p = r + K, *w = p + K;
  memcpy(H, m->state, (size_t)(K * K) * sizeof(real));
  for (int64_t t = 0; t < m->n; t++) {
    update(K, scan_decay(m->g[t * m->gate_stride]), m->beta[t * m->gate_stride], m->k + t * m->stride, H);
    memset(x, 0, (size_t)K * sizeof(real));
    memcpy(r, m->b + t * m->stride, (size_t)K * sizeof(real));
    memcpy(p, r, (size_t)K * sizeof(real));
    real square = scan_dot(r, r, K);
    const real enough = MESA_TOLERANCE * MESA_TOLERANCE * square;
    for (int64_t step = 0; step < m->steps && square > enough; step++) {
      for (int64_t i = 0; i < K; i++) w[i] = scan_dot(H + i * K, p, K) + m->lambda[i] * p[i];
      square = descend(K, square, w, x, r, p);
    }
    memcpy(m->x + t * m->stride, x, (size_t)K * sizeof(real));
  }
}
