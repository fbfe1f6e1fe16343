/* Memories that are a map of what the gates and gradients move, memory = f(A), read token by token: every token has an A and
 * a map of its own, which no product over a chunk gives.
 *
 *   power    f(A) = A / |A|_q^{q-2},  |A|_q = (sum |A|^q)^{1/q}                  (Moneta)
 *   mirror   f(A) = sgn(A) |A|^{q-1} / |A|_q^{q-2}, the gradient of 1/2 |A|_q^2
 *   softmax  f(A) = total e^A / sum e^A, over all of A, over each column or over each row  (Memora) */
#include "scan/memory.h"

/* ---- Powers -------------------------------------------------------------------------------------------------------- */

/* |a|^{q-2}: times a^2 it is |a|^q, times a it is sgn(a) |a|^{q-1} */
static real weight_of(real q, real a) {
  const real square = a * a;
  if (q == 4) return square;
  return comba_exp((q - 2) / 2 * comba_real_log(square + (real)1e-30));
}

/* N = sum |A|^q; the least of it keeps the map of a memory of zeros finite. */
static double power_sum(const memory_head *h, const real *A) {
  const real q = (real)h->map_exponent;
  double total = 1e-24;
  for (int64_t i = 0; i < h->rows; i++, A += h->V) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < h->V; c++) sum += weight_of(q, A[c]) * A[c] * A[c];
    total += (double)sum;
  }
  return total;
}

static void power_map(const memory_head *h, const real *A, real *memory) {
  const real q = (real)h->map_exponent;
  const real scale = (real)pow(power_sum(h, A), 2 / h->map_exponent - 1); /* 1 / |A|_q^{q-2} */
  const bool mirror = h->map == COMBA_MEMORY_MIRROR;
  for (int64_t i = 0; i < h->rows * h->V; i++) memory[i] = scale * A[i] * (mirror ? weight_of(q, A[i]) : 1);
}

static void power_map_backward(const memory_head *h, const real *A, real *gradient) {
  const int64_t size = h->rows * h->V;
  const real q = (real)h->map_exponent;
  const bool mirror = h->map == COMBA_MEMORY_MIRROR;
  const double N = power_sum(h, A);
  double along = 0; /* <gradient, f(A)> / scale */
  for (int64_t i = 0; i < h->rows; i++) {
    const real *a = A + i * h->V, *g = gradient + i * h->V;
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < h->V; c++) sum += g[c] * a[c] * (mirror ? weight_of(q, a[c]) : 1);
    along += (double)sum;
  }
  const real scale = (real)pow(N, 2 / h->map_exponent - 1);
  const real to_norm = (real)(along * (2 - h->map_exponent) * pow(N, 2 / h->map_exponent - 2));
  for (int64_t i = 0; i < size; i++) {
    const real weight = weight_of(q, A[i]);
    gradient[i] = scale * (mirror ? (q - 1) * weight : 1) * gradient[i] + to_norm * weight * A[i];
  }
}

/* ---- Softmax ------------------------------------------------------------------------------------------------------- */

/* The groups that sum to `total`: `count` of them, `step` apart, of n numbers each, `stride` apart. */
typedef struct groups {
  int64_t count, step, n, stride;
} groups;

static groups groups_of(const memory_head *h) {
  switch (h->map) {
  case COMBA_MEMORY_SOFTMAX_COLUMN: return (groups){h->V, 1, h->rows, h->V};
  case COMBA_MEMORY_SOFTMAX_ROW: return (groups){h->rows, h->V, h->V, 1};
  default: return (groups){1, 0, h->rows * h->V, 1};
  }
}

static void softmax_map(const memory_head *h, const real *A, real *memory) {
  const groups s = groups_of(h);
  for (int64_t group = 0; group < s.count; group++) {
    const real *a = A + group * s.step;
    real *to = memory + group * s.step, largest = a[0], sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < s.n; i++) largest = a[i * s.stride] > largest ? a[i * s.stride] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < s.n; i++) {
      to[i * s.stride] = comba_exp(a[i * s.stride] - largest);
      sum += to[i * s.stride];
    }
    const real scale = (real)h->map_total / sum;
    for (int64_t i = 0; i < s.n; i++) to[i * s.stride] *= scale;
  }
}

/* `memory` is the map of A */
static void softmax_map_backward(const memory_head *h, const real *memory, real *gradient) {
  const groups s = groups_of(h);
  for (int64_t group = 0; group < s.count; group++) {
    const real *m = memory + group * s.step;
    real *g = gradient + group * s.step, mean = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < s.n; i++) mean += m[i * s.stride] * g[i * s.stride];
    mean /= (real)h->map_total;
    for (int64_t i = 0; i < s.n; i++) g[i * s.stride] = m[i * s.stride] * (g[i * s.stride] - mean);
  }
}

void COMBA_VARIANT(comba_memory_map)(const memory_head *h, const real *A, real *memory) {
  if (h->map == COMBA_MEMORY_POWER || h->map == COMBA_MEMORY_MIRROR)
    power_map(h, A, memory);
  else
    softmax_map(h, A, memory);
}

void COMBA_VARIANT(comba_memory_map_backward)(const memory_head *h, const real *A, const real *memory, real *gradient) {
  if (h->map == COMBA_MEMORY_POWER || h->map == COMBA_MEMORY_MIRROR)
    power_map_backward(h, A, gradient);
  else
    softmax_map_backward(h, memory, gradient);
}

/* ---- Tokens -------------------------------------------------------------------------------------------------------- */

int64_t COMBA_VARIANT(comba_memory_mapped_scratch)(int64_t chunk, int64_t R, int64_t V, bool backward) {
  return (backward ? chunk + 3 : 1) * R * V;
}

/* to = retain from - rate k_i n_i^T; the two may be one */
static void step(const memory_chunk *x, int64_t i, const real *from, real *to) {
  const real *n = x->gradient + i * x->V, retain = x->retain[i];
  for (int64_t r = 0; r < x->R; r++) {
    const real key = x->rate[i] * x->k[i * x->R + r];
#pragma omp simd
    for (int64_t c = 0; c < x->V; c++) to[r * x->V + c] = retain * from[r * x->V + c] - key * n[c];
  }
}

void COMBA_VARIANT(comba_memory_mapped_forward)(const memory_head *h, const memory_chunk *x, real *o, int64_t stride) {
  const int64_t R = x->R, V = x->V;
  real *memory = x->scratch;
  for (int64_t i = 0; i < x->n; i++) {
    real *output = o + i * stride;
    step(x, i, x->running, x->running);
    COMBA_VARIANT(comba_memory_map)(h, x->running, memory);
    memset(output, 0, (size_t)V * sizeof(real));
    for (int64_t r = 0; r < R; r++) {
      const real query = x->q[i * R + r];
#pragma omp simd
      for (int64_t c = 0; c < V; c++) output[c] += query * memory[r * V + c];
    }
  }
}

/* The gradient of A after token i, through what the token reads and then through its step. */
static void token_backward(const memory_head *h, const memory_chunk *x, memory_chunk_gradient *g, int64_t i,
                           const real *before, const real *after, real *memory, real *read) {
  const int64_t R = x->R, V = x->V;
  const real *output = g->o + i * V, *k = x->k + i * R, *n = x->gradient + i * V;
  real *to_gradient = g->gradient + i * V, retain = 0, rate = 0;
  COMBA_VARIANT(comba_memory_map)(h, after, memory);
  for (int64_t r = 0; r < R; r++) {
    const real query = x->q[i * R + r];
    g->q[i * R + r] = scan_dot(memory + r * V, output, V);
    for (int64_t c = 0; c < V; c++) read[r * V + c] = query * output[c];
  }
  COMBA_VARIANT(comba_memory_map_backward)(h, after, memory, read);
  memset(to_gradient, 0, (size_t)V * sizeof(real));
  for (int64_t r = 0; r < R; r++) {
    real *D = g->running + r * V;
    for (int64_t c = 0; c < V; c++) D[c] += read[r * V + c];
    const real product = scan_dot(D, n, V), key = x->rate[i] * k[r];
    g->k[i * R + r] = -x->rate[i] * product;
    rate -= k[r] * product;
    retain += scan_dot(D, before + r * V, V);
#pragma omp simd
    for (int64_t c = 0; c < V; c++) {
      to_gradient[c] -= key * D[c];
      D[c] *= x->retain[i];
    }
  }
  g->rate[i] = rate;
  g->retain[i] = retain;
}

void COMBA_VARIANT(comba_memory_mapped_backward)(const memory_head *h, const memory_chunk *x,
                                                 memory_chunk_gradient *g) {
  const int64_t size = x->R * x->V;
  real *states = x->scratch, *memory = states + (x->n + 1) * size, *read = memory + size; /* (n + 1, R, V) A */
  memcpy(states, x->running, (size_t)size * sizeof(real));
  for (int64_t i = 0; i < x->n; i++) step(x, i, states + i * size, states + (i + 1) * size);
  for (int64_t i = x->n - 1; i >= 0; i--)
    token_backward(h, x, g, i, states + i * size, states + (i + 1) * size, memory, read);
}
