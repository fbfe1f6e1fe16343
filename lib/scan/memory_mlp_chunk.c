/* The two-layer memory over one sequence and head, chunk by chunk. With x the rows of a chunk (n,F), the memory w1, b1, w2, b2
 * that of its start, r_i what the place of token i gives it, a_j the rate of token j, and e_ij what retention leaves at token i
 * of what was there behind token j (e_i0: of the chunk's start):
 *
 *   z1 = k w1 + b1,  x2 = gelu(z1),  z2 = x2 w2 + b2       n2 = gradient of the inner loss at z2
 *   h = n2 w2^T,  n1 = h gelu'(z1)                         the same at z1
 *   y1 = e_0 (q w1 + b1) - A1 n1,  u = gelu(y1)            A1 = tril(r_i e_ij a_j (q_i . k_j + 1))
 *   o = e_0 (u w2 + b2) - A2 n2                            A2 = tril(r_i e_ij a_j (u_i . x2_j + 1))
 *   w1' = e_C0 w1 - r_C sum_j e_Cj a_j k_j^T n1_j, and so on
 *
 * With a map the last line is that of A, and w1 of the lines before it is f(A) at the chunk's start.
 *
 * A call may begin and end inside a chunk. Then the sums of e_ij a_j k_j^T n1_j so far are kept apart, `gathered`, and token i
 * reads the memory of the chunk's start less r_i times them. */
#include "scan/chunk_product.h"
#include "ops/gelu.h"
#include "scan/memory_mlp.h"
#include "scan/scalar.h"

/* ---- Scratch ------------------------------------------------------------------------------------------------------ */

/* A layer y = x w + b inside a memory, or its gradient. */
typedef struct layer {
  int64_t in, out;
  real *w, *b; /* (in,out), (out) */
} layer;

static layer first_layer(real *memory, int64_t F, int64_t M) {
  return (layer){F, M, memory, memory + F * M};
}
static layer second_layer(real *memory, int64_t F, int64_t M) {
  return (layer){M, F, memory + F * M + M, memory + 2 * F * M + M};
}

/* A chunk, or a part of one. Matrices of 2n rows have those of the keys first, then those of the queries. */
typedef struct chunk {
  int64_t n, start, phase;        /* tokens; the first one's number in the sequence, and its place in the chunk */
  bool complete;                  /* the chunk ends here */
  real kept;                      /* what retention has left of the chunk's start before these tokens */
  real *A, *memory;               /* (P) at the start of the chunk; its map, itself without one */
  real *gathered;                 /* (P) before these tokens; of interest where phase > 0 */
  real *place, *own;              /* (n) r, a */
  real *lag, *decay;              /* (n), (n,n) e from these tokens' start, e_ij */
  real *keep;                     /* (n) e_i0 */
  real *threshold;                /* (n) of the loss */
  real *x, *target;               /* (2n,F); (n,F) v - k */
  real *z1, *slope;               /* (2n,M) z1, y1; gelu' of them */
  real *x2;                       /* (2n,M) x2, u */
  real *h, *n1;                   /* (n,M) */
  real *z2, *n2;                  /* (n,F) */
  real *row;                      /* (5F) of a loss with a norm */
  real *o;                        /* (n,F) */
  real *score1, *score2, *masked; /* (n,n) q k^T + 1; u x2^T + 1; one of them times r_i e_ij a_j */
  real *product;                  /* (n, larger of F and M) */
  /* backward alone */
  real *memories;                 /* (GROUP,P) A at the start of a group's chunks */
  real *dA, *dmemory, *dgathered; /* (P); the first two are one without a map */
  real dkept;
  real *dplace, *down, *dthreshold; /* (n) */
  real *dmask;                      /* (n,n) of r_i e_ij a_j */
  real *inner;                      /* (n) of e_nj a_j, where the tokens write */
  real *dx, *dtarget;               /* (2n,F); (n,F) */
  real *dz1, *dx2;                  /* (2n,M) dz1, dy1; dx2, du */
  real *dz2;                        /* (2n,F) dz2, do */
  real *dn1, *dn2;                  /* (n,M), (n,F) */
  gate_paths paths;
} chunk;

/* Deals `scratch` out and returns its size; with NULL just the size. */
static int64_t lay_out(chunk *s, real *scratch, int64_t F, int64_t M, int64_t n, bool mapped, bool backward) {
  const int64_t P = memory_mlp_size(F, M), narrow = n * F, wide = n * M, square = n * n;
  const struct {
    real **at;
    int64_t size;
  } parts[] = {
      {&s->A, P},
      {&s->memory, mapped ? P : 0},
      {&s->gathered, P},
      {&s->place, n},
      {&s->own, n},
      {&s->lag, n},
      {&s->decay, square},
      {&s->keep, n},
      {&s->threshold, n},
      {&s->x, 2 * narrow},
      {&s->target, narrow},
      {&s->z1, 2 * wide},
      {&s->slope, 2 * wide},
      {&s->x2, 2 * wide},
      {&s->h, wide},
      {&s->n1, wide},
      {&s->z2, narrow},
      {&s->n2, narrow},
      {&s->row, 5 * F},
      {&s->o, narrow},
      {&s->score1, square},
      {&s->score2, square},
      {&s->masked, square},
      {&s->product, n * (F > M ? F : M)},
      /* backward alone */
      {&s->memories, GROUP * P},
      {&s->dA, P},
      {&s->dmemory, mapped ? P : 0},
      {&s->dgathered, P},
      {&s->dplace, n},
      {&s->down, n},
      {&s->dthreshold, n},
      {&s->dmask, square},
      {&s->inner, n},
      {&s->dx, 2 * narrow},
      {&s->dtarget, narrow},
      {&s->dz1, 2 * wide},
      {&s->dx2, 2 * wide},
      {&s->dz2, 2 * narrow},
      {&s->dn1, wide},
      {&s->dn2, narrow},
  };
  int64_t size = 0;
  for (size_t i = 0; i < sizeof parts / sizeof *parts && (backward || parts[i].at != &s->memories); i++) {
    *parts[i].at = scratch ? scratch + size : NULL;
    size += (parts[i].size + 15) / 16 * 16; /* whole cache lines */
  }
  if (!mapped) s->memory = s->A, s->dmemory = s->dA;
  return size;
}

int64_t COMBA_VARIANT(comba_memory_mlp_scratch)(int64_t F, int64_t M, int64_t C, bool mapped, bool backward) {
  chunk s = {.n = 0};
  return lay_out(&s, NULL, F, M, C, mapped, backward);
}

/* ---- Rows --------------------------------------------------------------------------------------------------------- */

static void gelu_rows(int64_t count, const real *z, real *y, real *slope) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) y[i] = comba_gelu_tanh(z[i], &slope[i]);
}

/* dz = dn h gelu''(z) */
static void gelu_curve_rows(int64_t count, const real *z, const real *dn, const real *h, real *dz) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) dz[i] = dn[i] * h[i] * comba_gelu_tanh_curve(z[i]);
}

/* ---- Layers ------------------------------------------------------------------------------------------------------- */

/* y (n,out) = x (n,in) w + b */
static void apply(int64_t n, const layer *l, const real *x, real *y) {
  for (int64_t i = 0; i < n; i++) memcpy(y + i * l->out, l->b, (size_t)l->out * sizeof(real));
  chunk_product('N', 'N', n, l->out, l->in, 1, x, l->in, l->w, l->out, 1, y, l->out);
}

/* The same of the memory. A map may make all weights positive: then the numbers of a row are much larger than what they differ by,
 * which is all that a norm leaves of them, so they are summed in double. */
static void apply_memory(const chunk *s, int64_t n, const layer *l, const real *x, real *y) {
  if (s->memory == s->A) {
    apply(n, l, x, y);
    return;
  }
  double sum[WIDTH_MAX];
  for (int64_t i = 0; i < n; i++)
    for (int64_t first = 0; first < l->out; first += WIDTH_MAX) {
      const int64_t width = l->out - first < WIDTH_MAX ? l->out - first : WIDTH_MAX;
      for (int64_t c = 0; c < width; c++) sum[c] = l->b[first + c];
      for (int64_t j = 0; j < l->in; j++)
#pragma omp simd
        for (int64_t c = 0; c < width; c++) sum[c] += (double)x[i * l->in + j] * (double)l->w[j * l->out + first + c];
      for (int64_t c = 0; c < width; c++) y[i * l->out + first + c] = (real)sum[c];
    }
}

/* l += factor (x^T y, column sums of y): x (n,in), y (n,out) */
static void add_outer(int64_t n, real factor, const real *x, const real *y, const layer *l) {
  chunk_product('T', 'N', l->in, l->out, n, factor, x, l->in, y, l->out, 1, l->w, l->out);
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < l->out; c++) l->b[c] += factor * y[i * l->out + c];
}

/* to (n,width) = from times a factor a row */
static void scale_rows(int64_t n, int64_t width, const real *factor, const real *from, real *to) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < width; c++) to[i * width + c] = factor[i] * from[i * width + c];
}

/* masked = tril(r_i e_ij a_j score_ij) */
static void mask_scores(const chunk *s, const real *score, real *masked) {
  for (int64_t i = 0; i < s->n; i++)
    for (int64_t j = 0; j < s->n; j++) {
      const int64_t at = i * s->n + j;
      masked[at] = j <= i ? s->place[i] * s->decay[at] * s->own[j] * score[at] : 0;
    }
}

/* y (n,out): what a layer makes of x (n,in) as each token finds it, after the gradients at the keys' inputs x_key (n,in) and
 * outputs (n,out), and those gathered before. */
static void read_layer(const chunk *s, const layer *l, const layer *gathered, const real *x, const real *x_key,
                       const real *gradient, real *score, real *y) {
  const int64_t n = s->n;
  apply_memory(s, n, l, x, y);
  scale_rows(n, l->out, s->keep, y, y);
  for (int64_t i = 0; i < n * n; i++) score[i] = 1;
  chunk_product('N', 'T', n, n, l->in, 1, x, l->in, x_key, l->in, 1, score, n);
  mask_scores(s, score, s->masked);
  chunk_product('N', 'N', n, l->out, n, -1, s->masked, n, gradient, l->out, 1, y, l->out);
  if (!s->phase) return;
  apply(n, gathered, x, s->product);
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < l->out; c++) y[i * l->out + c] -= s->place[i] * s->lag[i] * s->product[i * l->out + c];
}

/* Of read_layer: from dy (n,out), which is left times e_i0, dx, overwritten, and added to: dx_key, dgradient, dr, the gradients
 * of the mask, of the gates and of `gathered`. That of l is left to a product over more rows. */
static void read_layer_backward(chunk *s, const layer *l, const layer *gathered, const layer *dgathered, const real *x,
                                const real *x_key, const real *gradient, const real *score, bool gates, real *dy,
                                real *dx, real *dx_key, real *dgradient) {
  const int64_t n = s->n, in = l->in, out = l->out;
  mask_scores(s, score, s->masked);
  chunk_product('T', 'N', n, out, n, -1, s->masked, n, dy, out, 1, dgradient, out);
  chunk_product('N', 'T', n, n, out, -1, dy, out, gradient, out, 0, s->masked, n);
  for (int64_t i = 0; i < n * n; i++) s->dmask[i] += s->masked[i] * score[i];
  mask_scores(s, s->masked, s->masked);
  chunk_product('N', 'N', n, in, n, 1, s->masked, n, x_key, in, 0, dx, in);
  chunk_product('T', 'N', n, in, n, 1, s->masked, n, x, in, 1, dx_key, in);
  if (s->phase) {
    real factor[CHUNK];
    apply(n, gathered, x, s->product);
    for (int64_t i = 0; i < n; i++) {
      const real along = s->lag[i] * scan_dot(dy + i * out, s->product + i * out, out);
      s->dplace[i] -= along;
      s->paths.from_state[i] -= s->place[i] * along;
      factor[i] = s->place[i] * s->lag[i];
    }
    scale_rows(n, out, factor, dy, s->product);
    chunk_product('N', 'T', n, in, out, -1, s->product, out, gathered->w, out, 1, dx, in);
    add_outer(n, -1, x, s->product, dgathered);
  }
  if (gates) {
    apply(n, l, x, s->product);
    for (int64_t i = 0; i < n; i++) {
      const real along = scan_dot(dy + i * out, s->product + i * out, out);
      s->paths.from_state[i] += s->keep[i] * along;
      s->dkept += s->lag[i] * along;
    }
  }
  scale_rows(n, out, s->keep, dy, dy);
  chunk_product('N', 'T', n, in, out, 1, dy, out, l->w, out, 1, dx, in);
}

/* Of sum_j e_nj a_j (x_j^T gradient_j, gradient_j), from `dsum` times `factor`: dx (n,in) and dgradient (n,out), overwritten, and
 * s->inner, added to. */
static void gather_backward(const chunk *s, const layer *dsum, real factor, const real *x, const real *gradient,
                            real *dx, real *dgradient) {
  const int64_t n = s->n, in = dsum->in, out = dsum->out;
  apply(n, dsum, x, dgradient);
  for (int64_t j = 0; j < n; j++) {
    const real weight = factor * s->decay[(n - 1) * n + j] * s->own[j];
    s->inner[j] += scan_dot(gradient + j * out, dgradient + j * out, out);
    for (int64_t c = 0; c < out; c++) {
      dgradient[j * out + c] *= weight;
      s->product[j * out + c] = weight * gradient[j * out + c];
    }
  }
  chunk_product('N', 'T', n, in, out, 1, s->product, out, dsum->w, out, 0, dx, in);
}

/* ---- Chunks ------------------------------------------------------------------------------------------------------- */

/* The next tokens, from `start`, that lie in one chunk, `most` or fewer: their places, gates, keys, targets and queries. */
static void load_chunk(const memory_mlp_head *h, int64_t start, int64_t most, chunk *s) {
  const int64_t F = h->F, left = h->length - start;
  s->start = start;
  s->phase = (h->phase + start) % h->chunk;
  s->n = h->chunk - s->phase;
  if (s->n > left) s->n = left;
  if (s->n > most) s->n = most;
  s->complete = s->phase + s->n == h->chunk;
  if (!s->phase) s->kept = 1;
  for (int64_t i = 0; i < s->n; i++) {
    const int64_t row = start + i, at = s->phase + i;
    const real place = h->token_offset ? 1 / (real)(at + 1) + h->token_offset[at] : 1;
    const real retention = h->retention ? scan_decay(h->retention[row * h->gate_stride]) : 1;
    s->place[i] = place > 0 ? place : 0;
    s->own[i] = h->rate[row * h->gate_stride];
    s->threshold[i] = h->threshold ? h->threshold[row * h->gate_stride] : 0;
    s->lag[i] = retention * (i ? s->lag[i - 1] : 1);
    s->keep[i] = s->kept * s->lag[i];
    for (int64_t j = 0; j < s->n; j++)
      s->decay[i * s->n + j] = j < i ? retention * s->decay[(i - 1) * s->n + j] : j == i;
    memcpy(s->x + i * F, h->k + row * h->stride, (size_t)F * sizeof(real));
    memcpy(s->x + (s->n + i) * F, h->q + row * h->stride, (size_t)F * sizeof(real));
    for (int64_t c = 0; c < F; c++) s->target[i * F + c] = h->v[row * h->stride + c] - s->x[i * F + c];
  }
}

/* Through the map and back: each matrix by itself, biases as they are. */
static void map_memory(const memory_mlp_head *h, chunk *s) {
  const int64_t F = h->F, M = h->M;
  if (!h->mapped) {
    s->memory = s->A;
    return;
  }
  memcpy(s->memory, s->A, (size_t)memory_mlp_size(F, M) * sizeof(real));
  const layer from[] = {first_layer(s->A, F, M), second_layer(s->A, F, M)};
  const layer to[] = {first_layer(s->memory, F, M), second_layer(s->memory, F, M)};
  for (int i = 0; i < 2; i++) COMBA_VARIANT(comba_memory_mlp_map)(&h->map, from[i].in, from[i].out, from[i].w, to[i].w);
}

/* Adds to dA what s->dmemory, which is overwritten, means for A. */
static void map_memory_backward(const memory_mlp_head *h, const chunk *s) {
  const int64_t F = h->F, M = h->M;
  if (!h->mapped) return;
  const layer A[] = {first_layer(s->A, F, M), second_layer(s->A, F, M)};
  const layer memory[] = {first_layer(s->memory, F, M), second_layer(s->memory, F, M)};
  const layer d[] = {first_layer(s->dmemory, F, M), second_layer(s->dmemory, F, M)};
  for (int i = 0; i < 2; i++) {
    const layer *a = &A[i];
    COMBA_VARIANT(comba_memory_mlp_map_backward)(&h->map, a->in, a->out, a->w, memory[i].w, d[i].w);
  }
  scan_add(s->dA, s->dmemory, memory_mlp_size(F, M));
}

/* What the keys alone decide: z1, x2, z2, n2, h, n1. */
static void find_gradients(const memory_mlp_head *h, chunk *s) {
  const int64_t n = s->n, F = h->F, M = h->M;
  const layer first = first_layer(s->memory, F, M), second = second_layer(s->memory, F, M);
  apply_memory(s, n, &first, s->x, s->z1);
  gelu_rows(n * M, s->z1, s->x2, s->slope);
  apply_memory(s, n, &second, s->x2, s->z2);
  COMBA_VARIANT(comba_normed_loss_forward)(&h->loss, n, s->z2, s->target, s->threshold, s->n2, s->row);
  chunk_product('N', 'T', n, M, F, 1, s->n2, F, second.w, F, 0, s->h, M);
  for (int64_t i = 0; i < n * M; i++) s->n1[i] = s->h[i] * s->slope[i];
}

/* What the queries read: y1, u, o. */
static void read_memory(const memory_mlp_head *h, chunk *s) {
  const int64_t n = s->n, F = h->F, M = h->M;
  const layer first = first_layer(s->memory, F, M), second = second_layer(s->memory, F, M);
  const layer gathered1 = first_layer(s->gathered, F, M), gathered2 = second_layer(s->gathered, F, M);
  real *y1 = s->z1 + n * M, *u = s->x2 + n * M;
  read_layer(s, &first, &gathered1, s->x + n * F, s->x, s->n1, s->score1, y1);
  gelu_rows(n * M, y1, u, s->slope + n * M);
  read_layer(s, &second, &gathered2, u, s->x2, s->n2, s->score2, s->o);
}

/* A, or what is gathered, after the tokens. */
static void write_memory(const memory_mlp_head *h, chunk *s) {
  const int64_t n = s->n, F = h->F, M = h->M, P = memory_mlp_size(F, M);
  const real last = s->place[n - 1], lag = s->lag[n - 1];
  const bool whole = s->complete && !s->phase; /* nothing needs to be gathered */
  s->kept = s->keep[n - 1];
  for (int64_t i = 0; !whole && i < P; i++) s->gathered[i] = s->phase ? lag * s->gathered[i] : 0;
  for (int64_t i = 0; s->complete && h->retention && i < P; i++) s->A[i] *= s->kept;
  real *to = whole ? s->A : s->gathered, weight[CHUNK];
  const real factor = whole ? -last : 1;
  const layer first = first_layer(to, F, M), second = second_layer(to, F, M);
  for (int64_t j = 0; j < n; j++) weight[j] = s->decay[(n - 1) * n + j] * s->own[j];
  scale_rows(n, M, weight, s->n1, s->product);
  add_outer(n, factor, s->x, s->product, &first);
  scale_rows(n, F, weight, s->n2, s->product);
  add_outer(n, factor, s->x2, s->product, &second);
  if (s->complete && !whole)
    for (int64_t i = 0; i < P; i++) s->A[i] -= last * s->gathered[i];
}

/* ---- Forward ------------------------------------------------------------------------------------------------------ */

/* The learned memory is four parameters. */
enum { PARTS = 4 };
typedef struct part {
  const real *data;
  int64_t size;
} part;
static void parts_of(const memory_mlp_head *h, part parts[PARTS]) {
  const int64_t F = h->F, M = h->M;
  const part all[PARTS] = {{h->w1, F * M}, {h->b1, M}, {h->w2, M * F}, {h->b2, F}};
  memcpy(parts, all, sizeof all);
}

static void load_memory(const memory_mlp_head *h, real *memory) {
  part parts[PARTS];
  parts_of(h, parts);
  real *to = memory;
  for (int i = 0; i < PARTS; to += parts[i++].size) memcpy(to, parts[i].data, (size_t)parts[i].size * sizeof(real));
  if (h->initial_state) scan_add(memory, h->initial_state, memory_mlp_size(h->F, h->M));
}

/* The state's other parts. */
static void load_gathered(const memory_mlp_head *h, chunk *s) {
  const int64_t P = memory_mlp_size(h->F, h->M);
  scan_load_state(s->gathered, h->initial_state ? h->initial_state + P : NULL, P);
  s->kept = h->retention && h->initial_state ? 1 + h->initial_state[2 * P] : 1;
}

/* A memory that no chunk's end has changed stays as it was given, bit by bit. */
static void store_state(const memory_mlp_head *h, const chunk *s) {
  const int64_t P = memory_mlp_size(h->F, h->M), end = h->phase + h->length;
  const bool inside = end % h->chunk;
  part parts[PARTS];
  parts_of(h, parts);
  real *to = h->final_state;
  const real *from = s->A;
  if (end < h->chunk)
    scan_load_state(to, h->initial_state, P);
  else
    for (int i = 0; i < PARTS; from += parts[i].size, to += parts[i++].size)
      for (int64_t j = 0; j < parts[i].size; j++) to[j] = from[j] - parts[i].data[j];
  scan_load_state(h->final_state + P, inside ? s->gathered : NULL, P);
  if (h->retention) h->final_state[2 * P] = inside ? s->kept - 1 : 0;
}

/* Chunks of the sequence, whole or not, and the token at which one starts. */
static int64_t chunks_of(const memory_mlp_head *h) {
  return h->length ? (h->phase + h->length + h->chunk - 1) / h->chunk : 0;
}
static int64_t chunk_start(const memory_mlp_head *h, int64_t number) {
  return number ? number * h->chunk - h->phase : 0;
}

void COMBA_VARIANT(comba_memory_mlp_forward)(const memory_mlp_head *h, real *scratch) {
  const int64_t F = h->F, P = memory_mlp_size(F, h->M);
  chunk s = {.n = 0};
  lay_out(&s, scratch, F, h->M, h->chunk, h->mapped, false);
  load_memory(h, s.A);
  load_gathered(h, &s);
  for (int64_t start = 0; start < h->length; start += s.n) {
    const int64_t number = (h->phase + start) / h->chunk;
    load_chunk(h, start, h->by_token ? 1 : h->chunk, &s);
    if (start == chunk_start(h, number)) {
      map_memory(h, &s);
      if (h->memories && number % GROUP == 0)
        memcpy(h->memories + number / GROUP * h->memory_stride, s.A, (size_t)P * sizeof(real));
    }
    find_gradients(h, &s);
    read_memory(h, &s);
    for (int64_t i = 0; i < s.n; i++) memcpy(h->o + (start + i) * h->stride, s.o + i * F, (size_t)F * sizeof(real));
    write_memory(h, &s);
  }
  store_state(h, &s);
}

/* ---- Backward ----------------------------------------------------------------------------------------------------- */

/* What the tokens write, from the gradients of A, or of what is gathered and kept, behind them: these become those before. */
static void write_memory_backward(const memory_mlp_head *h, chunk *s, real *dk, real *dx2) {
  const int64_t n = s->n, F = h->F, M = h->M, P = memory_mlp_size(F, M);
  const real factor = s->complete ? -s->place[n - 1] : 1, lag = s->lag[n - 1];
  real *base = s->complete ? s->dA : s->dgathered;
  const layer first = first_layer(base, F, M), second = second_layer(base, F, M);
  memset(s->inner, 0, (size_t)n * sizeof(real));
  gather_backward(s, &first, factor, s->x, s->n1, dk, s->dn1);
  gather_backward(s, &second, factor, s->x2, s->n2, dx2, s->dn2);
  real along = s->phase ? lag * scan_dot(base, s->gathered, P) : 0; /* <base, gathered>, before and then behind */
  s->paths.across = factor * along;
  for (int64_t j = 0; j < n; j++) {
    const real decay = s->decay[(n - 1) * n + j], own = s->own[j];
    along += decay * own * s->inner[j];
    s->down[j] += factor * decay * s->inner[j];
    s->paths.to_state[j] = factor * decay * own * s->inner[j];
  }
  if (s->complete) s->dplace[n - 1] -= along;
  for (int64_t i = 0; s->phase && i < P; i++) s->dgathered[i] = factor * lag * base[i];
  if (!h->retention) return;
  if (s->complete) s->dkept = scan_dot(s->dA, s->A, P);
  s->paths.across += s->keep[n - 1] * s->dkept;
  s->dkept *= lag;
  for (int64_t i = 0; s->complete && i < P; i++) s->dA[i] *= s->keep[n - 1];
}

/* The gradients of places, rates and retention from that of the mask. */
static void mask_backward(const memory_mlp_head *h, chunk *s) {
  const int64_t n = s->n;
  real *dretention = h->dretention ? h->dretention + s->start * h->gate_stride : NULL, paths_from[CHUNK] = {0};
  for (int64_t t = n - 1; t >= 0; t--) {
    s->paths.between[t] = 0;
    for (int64_t j = 0; j <= t; j++) {
      const real slope = s->dmask[t * n + j] * s->decay[t * n + j];
      s->dplace[t] += slope * s->own[j];
      s->down[j] += slope * s->place[t];
      if (j == t) continue;
      paths_from[j] += slope * s->place[t] * s->own[j];
      s->paths.between[t] += paths_from[j];
    }
  }
  chunk_gate_gradient(n, &s->paths, h->accumulate[RETENTION], dretention, h->gate_stride);
}

/* On entry s->A and what is gathered and kept are those before the tokens, the gradients in s->dA, s->dgathered and s->dkept those
 * behind them; on return these are those before. Gradients of what all chunks share are added to. */
static void backward_chunk(const memory_mlp_head *h, chunk *s) {
  const int64_t n = s->n, F = h->F, M = h->M, P = memory_mlp_size(F, M);
  const layer first = first_layer(s->memory, F, M), second = second_layer(s->memory, F, M);
  const layer gathered1 = first_layer(s->gathered, F, M), gathered2 = second_layer(s->gathered, F, M);
  const layer dfirst = first_layer(s->dmemory, F, M), dsecond = second_layer(s->dmemory, F, M);
  const layer dgathered1 = first_layer(s->dgathered, F, M), dgathered2 = second_layer(s->dgathered, F, M);
  real *dweight = h->parameter_gradient + P, *dbias = dweight + F, *doffset = dbias + F;
  real *x2 = s->x2, *u = x2 + n * M, *dx2 = s->dx2, *du = dx2 + n * M, *dh = du;
  real *dz1 = s->dz1, *dy1 = dz1 + n * M, *dz2 = s->dz2, *o_gradient = dz2 + n * F;
  real *dk = s->dx, *dq = dk + n * F;
  find_gradients(h, s);
  read_memory(h, s);
  memset(s->dplace, 0, (size_t)n * sizeof(real));
  memset(s->down, 0, (size_t)n * sizeof(real));
  memset(s->dthreshold, 0, (size_t)n * sizeof(real));
  memset(s->dmask, 0, (size_t)(n * n) * sizeof(real));
  memset(&s->paths, 0, sizeof s->paths);
  write_memory_backward(h, s, dk, dx2);
  if (h->mapped) memset(s->dmemory, 0, (size_t)P * sizeof(real));

  /* what they read */
  if (h->output_gradient) {
    for (int64_t i = 0; i < n; i++)
      memcpy(o_gradient + i * F, h->output_gradient + (s->start + i) * h->stride, (size_t)F * sizeof(real));
    read_layer_backward(s, &second, &gathered2, &dgathered2, u, x2, s->n2, s->score2, h->retention, o_gradient, du, dx2,
                        s->dn2);
    for (int64_t i = 0; i < n * M; i++) dy1[i] = du[i] * s->slope[n * M + i];
    read_layer_backward(s, &first, &gathered1, &dgathered1, s->x + n * F, s->x, s->n1, s->score1, h->retention, dy1, dq,
                        dk, s->dn1);
  } else {
    memset(o_gradient, 0, (size_t)(n * F) * sizeof(real));
    memset(dy1, 0, (size_t)(n * M) * sizeof(real));
    memset(dq, 0, (size_t)(n * F) * sizeof(real));
  }

  /* what they write, as a function of the memory; dh takes the place of du, which has been used */
  for (int64_t i = 0; i < n * M; i++) dh[i] = s->dn1[i] * s->slope[i];
  gelu_curve_rows(n * M, s->z1, s->dn1, s->h, dz1);
  chunk_product('N', 'N', n, F, M, 1, dh, M, second.w, F, 1, s->dn2, F);
  const inner_loss_gradients inner = {dz2, s->dtarget, s->dthreshold, dweight, dbias};
  COMBA_VARIANT(comba_normed_loss_backward)(&h->loss, n, s->z2, s->target, s->threshold, s->dn2, &inner, s->row);
  chunk_product('N', 'T', n, M, F, 1, dz2, F, second.w, F, 1, dx2, M);
  for (int64_t i = 0; i < n * M; i++) dz1[i] += dx2[i] * s->slope[i];
  chunk_product('N', 'T', n, F, M, 1, dz1, M, first.w, M, 1, dk, F);
  for (int64_t i = 0; i < n * F; i++) dk[i] -= s->dtarget[i];

  add_outer(2 * n, 1, s->x, dz1, &dfirst);
  add_outer(2 * n, 1, x2, dz2, &dsecond);
  chunk_product('T', 'N', M, F, n, 1, dh, M, s->n2, F, 1, dsecond.w, F);
  map_memory_backward(h, s);
  mask_backward(h, s);
  for (int64_t i = 0; h->token_offset && i < n; i++) doffset[s->phase + i] += s->place[i] > 0 ? s->dplace[i] : 0;
}

/* Rows or gates of the chunk's tokens to their place among all, `stride` apart. */
static void store_rows(const memory_mlp_head *h, const chunk *s, int input, real *to, int64_t width, int64_t stride,
                       const real *from) {
  for (int64_t i = 0; to && i < s->n; i++)
    scan_store_gradient(to + (s->start + i) * stride, from + i * width, width, h->accumulate[input]);
}

void COMBA_VARIANT(comba_memory_mlp_backward)(const memory_mlp_head *h, real *scratch) {
  const int64_t F = h->F, M = h->M, P = memory_mlp_size(F, M);
  const real *final = h->final_state_gradient;
  const bool inside = (h->phase + h->length) % h->chunk;
  chunk s = {.n = 0};
  lay_out(&s, scratch, F, M, h->chunk, h->mapped, true);
  load_gathered(h, &s);
  scan_load_state(s.dA, final, P);
  scan_load_state(s.dgathered, final && inside ? final + P : NULL, P);
  s.dkept = final && inside && h->retention ? final[2 * P] : 0;
  for (int64_t end = chunks_of(h), first; end > 0; end = first) {
    first = (end - 1) / GROUP * GROUP;
    memcpy(s.memories, h->memories + first / GROUP * h->memory_stride, (size_t)P * sizeof(real));
    for (int64_t number = first; number < end - 1; number++) {
      s.A = s.memories + (number + 1 - first) * P;
      memcpy(s.A, s.A - P, (size_t)P * sizeof(real));
      load_chunk(h, chunk_start(h, number), h->chunk, &s);
      map_memory(h, &s);
      find_gradients(h, &s);
      write_memory(h, &s);
    }
    for (int64_t number = end - 1; number >= first; number--) {
      if (!number) load_gathered(h, &s); /* the way forward has changed it */
      s.A = s.memories + (number - first) * P;
      load_chunk(h, chunk_start(h, number), h->chunk, &s);
      map_memory(h, &s);
      backward_chunk(h, &s);
      store_rows(h, &s, Q, h->dq, F, h->stride, s.dx + s.n * F);
      store_rows(h, &s, KEY, h->dk, F, h->stride, s.dx);
      store_rows(h, &s, VALUE, h->dv, F, h->stride, s.dtarget);
      store_rows(h, &s, RATE, h->drate, 1, h->gate_stride, s.down);
      store_rows(h, &s, THRESHOLD, h->dthreshold, 1, h->gate_stride, s.dthreshold);
    }
  }
  scan_add(h->parameter_gradient, s.dA, P);
  for (int64_t i = 0; final && i < P; i++)
    h->parameter_gradient[i] -= final[i]; /* a state is less the learned memory */
  if (!h->initial_state_gradient) return;
  if (!h->phase) memset(s.dgathered, 0, (size_t)P * sizeof(real)), s.dkept = 0;
  const bool accumulate = h->accumulate[INITIAL_STATE];
  scan_store_gradient(h->initial_state_gradient, s.dA, P, accumulate);
  scan_store_gradient(h->initial_state_gradient + P, s.dgathered, P, accumulate);
  if (h->retention) scan_store_gradient(h->initial_state_gradient + 2 * P, &s.dkept, 1, accumulate);
}
