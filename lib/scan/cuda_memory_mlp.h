/* Chunks of the two-layer memory for a block of threads: memory_mlp_chunk.c has the formulas and says what the names mean. All matrices
 * are float, in the workspace of the block. */
#ifndef COMBA_SCAN_CUDA_MEMORY_MLP_H
#define COMBA_SCAN_CUDA_MEMORY_MLP_H

#include "scan/cuda_memory_map.h"
#include "scan/cuda_normed_loss.h"

enum { CHUNK = 64, GROUP = 4 };

/* A layer y = x w + b inside a memory, or its gradient. */
typedef struct mlp_layer {
  int64_t in, out;
  float *w, *b; /* (in,out), (out) */
} mlp_layer;

static inline __host__ __device__ int64_t mlp_size(int64_t F, int64_t M) {
  return 2 * F * M + M + F;
}
static inline __device__ mlp_layer first_layer(float *memory, int64_t F, int64_t M) {
  return {F, M, memory, memory + F * M};
}
static inline __device__ mlp_layer second_layer(float *memory, int64_t F, int64_t M) {
  return {M, F, memory + F * M + M, memory + 2 * F * M + M};
}

/* Numbers of each token, and their gradients. The paths are those of scalar.h. */
typedef struct mlp_tokens {
  float place[CHUNK], own[CHUNK], lag[CHUNK], keep[CHUNK], threshold[CHUNK];
  float dplace[CHUNK], down[CHUNK], dthreshold[CHUNK], inner[CHUNK], along[CHUNK];
  float from_state[CHUNK], to_state[CHUNK], between[CHUNK];
} mlp_tokens;

typedef struct cuda_mlp_chunk {
  int64_t F, M, P, n, start, phase;
  bool complete, retention;
  memory_map map; /* linear: none; total 0: see map_of */
  cuda_normed_loss loss;
  mlp_tokens *token; /* shared by the block */
  float kept, dkept, across;
  float *A, *memory, *gathered; /* (P) */
  float *decay;                 /* (n,n) */
  float *x, *target;            /* (2n,F), (n,F) */
  float *z1, *slope, *x2;       /* (2n,M) */
  float *h, *n1, *z2, *n2, *o;  /* (n,M), (n,F) */
  float *score1, *score2, *masked, *product;
  /* backward */
  float *memories, *dA, *dmemory, *dgathered, *dmask;
  float *dx, *dtarget, *dz1, *dx2, *dz2, *dn1, *dn2;
} cuda_mlp_chunk;

/* Where everything lies from `base` on; returns the number of floats. */
static inline __host__ __device__ int64_t lay_out_mlp(cuda_mlp_chunk *s, float *base, int64_t F, int64_t M, int64_t n,
                                                      bool mapped, bool normed, bool backward) {
  const int64_t P = mlp_size(F, M), narrow = n * F, wide = n * M, square = n * n, norm = normed ? narrow : 0;
  const int64_t back = backward;
  cuda_normed_loss *l = &s->loss;
  const struct {
    float **at;
    int64_t size;
  } part[] = {{&s->A, P},
              {&s->memory, mapped ? P : 0},
              {&s->gathered, P},
              {&s->decay, square},
              {&s->x, 2 * narrow},
              {&s->target, narrow},
              {&s->z1, 2 * wide},
              {&s->slope, 2 * wide},
              {&s->x2, 2 * wide},
              {&s->h, wide},
              {&s->n1, wide},
              {&s->z2, narrow},
              {&s->n2, narrow},
              {&s->o, narrow},
              {&s->score1, square},
              {&s->score2, square},
              {&s->masked, square},
              {&s->product, n * (F > M ? F : M)},
              {&l->x, norm},
              {&l->y, norm},
              {&l->u, norm},
              {&l->g, norm},
              {&l->more, norm * back},
              {&s->memories, GROUP * P * back},
              {&s->dA, P * back},
              {&s->dmemory, mapped ? P * back : 0},
              {&s->dgathered, P * back},
              {&s->dmask, square * back},
              {&s->dx, 2 * narrow * back},
              {&s->dtarget, narrow * back},
              {&s->dz1, 2 * wide * back},
              {&s->dx2, 2 * wide * back},
              {&s->dz2, 2 * narrow * back},
              {&s->dn1, wide * back},
              {&s->dn2, narrow * back}};
  int64_t offset = 0;
  for (const auto &p : part) {
    *p.at = base ? base + offset : NULL;
    offset += (p.size + 3) / 4 * 4;
  }
  if (!mapped) s->memory = s->A, s->dmemory = s->dA;
  s->F = F;
  s->M = M;
  s->P = P;
  return offset;
}

/* ---- Layers ---------------------------------------------------------------------------------------------------------- */

/* y (n,out) = x (n,in) w + b */
static __device__ __noinline__ void apply_layer(int64_t n, const mlp_layer &l, const float *x, float *y) {
  block_each(n * l.out, [&](int64_t i) { y[i] = l.b[i % l.out]; });
  block_product(n, l.out, l.in, 1, rows_of(x, l.in), rows_of(l.w, l.out), 1, y);
}

/* l += factor (x^T y, column sums of y): x (n,in), y (n,out) */
static __device__ __noinline__ void add_outer(int64_t n, float factor, const float *x, const float *y,
                                              const mlp_layer &l) {
  block_product(l.in, l.out, n, factor, transposed(x, l.in), rows_of(y, l.out), 1, l.w);
  block_each(l.out, [&](int64_t c) {
    for (int64_t i = 0; i < n; i++) l.b[c] += factor * y[i * l.out + c];
  });
}

static __device__ __noinline__ void mask_scores(const cuda_mlp_chunk &s, const float *score, float *masked) {
  const mlp_tokens *t = s.token;
  block_each(s.n * s.n, [&](int64_t at) {
    const int64_t i = at / s.n, j = at % s.n;
    masked[at] = j <= i ? t->place[i] * s.decay[at] * t->own[j] * score[at] : 0;
  });
}

/* y (n,out): what a layer makes of x (n,in) as each token finds it. */
static __device__ __noinline__ void read_layer(const cuda_mlp_chunk &s, const mlp_layer &l, const mlp_layer &gathered,
                                               const float *x, const float *x_key, const float *gradient, float *score,
                                               float *y) {
  const int64_t n = s.n, out = l.out;
  const mlp_tokens *t = s.token;
  apply_layer(n, l, x, y);
  block_each(n * out, [&](int64_t i) { y[i] *= t->keep[i / out]; });
  block_each(n * n, [&](int64_t i) { score[i] = 1; });
  block_product(n, n, l.in, 1, rows_of(x, l.in), transposed(x_key, l.in), 1, score);
  mask_scores(s, score, s.masked);
  block_product(n, out, n, -1, rows_of(s.masked, n), rows_of(gradient, out), 1, y);
  if (!s.phase) return;
  apply_layer(n, gathered, x, s.product);
  block_each(n * out, [&](int64_t i) { y[i] -= t->place[i / out] * t->lag[i / out] * s.product[i]; });
}

/* From dy (n,out), which is left times e_i0: dx, overwritten, and added to: dx_key, dgradient, and the gradients of places, the mask,
 * gates and `gathered`. That of l is left to a product over more rows. */
static __device__ __noinline__ void read_layer_backward(cuda_mlp_chunk *s, const mlp_layer &l,
                                                        const mlp_layer &gathered, const mlp_layer &dgathered,
                                                        const float *x, const float *x_key, const float *gradient,
                                                        const float *score, float *dy, float *dx, float *dx_key,
                                                        float *dgradient) {
  const int64_t n = s->n, in = l.in, out = l.out;
  mlp_tokens *t = s->token;
  float *masked = s->masked, *product = s->product;
  mask_scores(*s, score, masked);
  block_product(n, out, n, -1, transposed(masked, n), rows_of(dy, out), 1, dgradient);
  block_product(n, n, out, -1, rows_of(dy, out), transposed(gradient, out), 0, masked);
  block_each(n * n, [&](int64_t i) { s->dmask[i] += masked[i] * score[i]; });
  mask_scores(*s, masked, masked);
  block_product(n, in, n, 1, rows_of(masked, n), rows_of(x_key, in), 0, dx);
  block_product(n, in, n, 1, transposed(masked, n), rows_of(x, in), 1, dx_key);
  if (s->phase) {
    apply_layer(n, gathered, x, product);
    block_rows(n, [&](int64_t i, int lane) {
      const float along = t->lag[i] * warp_inner_product(out, dy + i * out, product + i * out);
      if (lane) return;
      t->dplace[i] -= along;
      t->from_state[i] -= t->place[i] * along;
    });
    block_each(n * out, [&](int64_t i) { product[i] = t->place[i / out] * t->lag[i / out] * dy[i]; });
    block_product(n, in, out, -1, rows_of(product, out), transposed(gathered.w, out), 1, dx);
    add_outer(n, -1, x, product, dgathered);
  }
  if (s->retention) {
    apply_layer(n, l, x, product);
    block_rows(n, [&](int64_t i, int lane) {
      const float along = warp_inner_product(out, dy + i * out, product + i * out);
      if (lane) return;
      t->along[i] = along;
      t->from_state[i] += t->keep[i] * along;
    });
    for (int64_t i = 0; i < n; i++) s->dkept += t->lag[i] * t->along[i];
  }
  block_each(n * out, [&](int64_t i) { dy[i] *= t->keep[i / out]; });
  block_product(n, in, out, 1, rows_of(dy, out), transposed(l.w, out), 1, dx);
}

/* Of sum_j e_nj a_j (x_j^T gradient_j, gradient_j), from `dsum` times `factor`: dx and dgradient, overwritten, and inner, added to. */
static __device__ __noinline__ void gather_layer_backward(const cuda_mlp_chunk &s, const mlp_layer &dsum, float factor,
                                                          const float *x, const float *gradient, float *dx,
                                                          float *dgradient) {
  const int64_t n = s.n, out = dsum.out;
  mlp_tokens *t = s.token;
  apply_layer(n, dsum, x, dgradient);
  block_rows(n, [&](int64_t j, int lane) {
    const float weight = factor * s.decay[(n - 1) * n + j] * t->own[j];
    const float product = warp_inner_product(out, gradient + j * out, dgradient + j * out);
    if (!lane) t->inner[j] += product;
    for (int64_t c = j * out + lane; c < (j + 1) * out; c += 32) {
      dgradient[c] *= weight;
      s.product[c] = weight * gradient[c];
    }
  });
  block_product(n, dsum.in, out, 1, rows_of(s.product, out), transposed(dsum.w, out), 0, dx);
}

/* ---- Chunks ---------------------------------------------------------------------------------------------------------- */

/* The map of a matrix of the memory; without a total, that which gives a unit row of equal entries back as ones. */
static inline __device__ memory_map map_of(const memory_map &map, const mlp_layer &l) {
  memory_map of = map;
  const double R = (double)l.in, C = (double)l.out;
  if (map.total == 0)
    of.total = map.kind == COMBA_MEMORY_SOFTMAX_COLUMN ? sqrt(R)
               : map.kind == COMBA_MEMORY_SOFTMAX_ROW  ? C / sqrt(R)
                                                       : C * sqrt(R);
  return of;
}

static inline __device__ void map_layers(cuda_mlp_chunk *s) {
  if (s->map.kind == COMBA_MEMORY_LINEAR) {
    s->memory = s->A;
    return;
  }
  block_copy(s->P, s->A, s->memory);
  const mlp_layer from[] = {first_layer(s->A, s->F, s->M), second_layer(s->A, s->F, s->M)};
  const mlp_layer to[] = {first_layer(s->memory, s->F, s->M), second_layer(s->memory, s->F, s->M)};
  for (int i = 0; i < 2; i++) map_memory(map_of(s->map, from[i]), from[i].in, from[i].out, from[i].w, to[i].w);
}

/* Adds to dA what s->dmemory, which is overwritten, means for A. */
static inline __device__ void map_layers_backward(const cuda_mlp_chunk &s) {
  if (s.map.kind == COMBA_MEMORY_LINEAR) return;
  const mlp_layer A[] = {first_layer(s.A, s.F, s.M), second_layer(s.A, s.F, s.M)};
  const mlp_layer memory[] = {first_layer(s.memory, s.F, s.M), second_layer(s.memory, s.F, s.M)};
  const mlp_layer d[] = {first_layer(s.dmemory, s.F, s.M), second_layer(s.dmemory, s.F, s.M)};
  for (int i = 0; i < 2; i++) map_backward(map_of(s.map, A[i]), A[i].in, A[i].out, A[i].w, memory[i].w, d[i].w);
  block_add(s.P, s.dmemory, s.dA);
}

/* gelu with tanh as x sigmoid(w), w = x (a + b x^2) (ops/gelu.h): value, slope and second derivative */
static inline __device__ float gelu_of(float x, float *slope, float *curve) {
  const float a = 1.5957691216057308f, squared = 0.07135481627260025f * x * x;
  const float s = 1 / (1 + expf(-x * (a + squared))), of_w = a + 3 * squared;
  *slope = s + x * s * (1 - s) * of_w;
  *curve = s * (1 - s) * (2 * of_w + 6 * squared + x * of_w * of_w * (1 - 2 * s));
  return x * s;
}
static inline __device__ void gelu_rows(int64_t count, const float *z, float *y, float *slope) {
  block_each(count, [=](int64_t i) {
    float curve;
    y[i] = gelu_of(z[i], slope + i, &curve);
  });
}

/* What the keys alone decide: z1, x2, z2, n2, h, n1. */
static __device__ __noinline__ void find_gradients(const cuda_mlp_chunk &s) {
  const int64_t n = s.n, F = s.F, M = s.M;
  const mlp_layer first = first_layer(s.memory, F, M), second = second_layer(s.memory, F, M);
  apply_layer(n, first, s.x, s.z1);
  gelu_rows(n * M, s.z1, s.x2, s.slope);
  apply_layer(n, second, s.x2, s.z2);
  normed_loss_forward<CHUNK>(s.loss, n, s.z2, s.target, s.token->threshold, s.n2);
  block_product(n, M, F, 1, rows_of(s.n2, F), transposed(second.w, F), 0, s.h);
  block_each(n * M, [&](int64_t i) { s.n1[i] = s.h[i] * s.slope[i]; });
}

/* What the queries read: y1, u, o. */
static inline __device__ void read_memory(const cuda_mlp_chunk &s) {
  const int64_t n = s.n, F = s.F, M = s.M;
  float *y1 = s.z1 + n * M, *u = s.x2 + n * M;
  read_layer(s, first_layer(s.memory, F, M), first_layer(s.gathered, F, M), s.x + n * F, s.x, s.n1, s.score1, y1);
  gelu_rows(n * M, y1, u, s.slope + n * M);
  read_layer(s, second_layer(s.memory, F, M), second_layer(s.gathered, F, M), u, s.x2, s.n2, s.score2, s.o);
}

/* A, or what is gathered, after the tokens. */
static __device__ __noinline__ void write_memory(cuda_mlp_chunk *s) {
  const int64_t n = s->n, F = s->F, M = s->M, P = s->P;
  const mlp_tokens *t = s->token;
  const float last = t->place[n - 1], lag = t->lag[n - 1], *weight = s->decay + (n - 1) * n;
  const bool whole = s->complete && !s->phase; /* nothing needs to be gathered */
  s->kept = t->keep[n - 1];
  if (!whole) block_each(P, [&](int64_t i) { s->gathered[i] = s->phase ? lag * s->gathered[i] : 0; });
  if (s->complete && s->retention) block_each(P, [&](int64_t i) { s->A[i] *= s->kept; });
  float *to = whole ? s->A : s->gathered;
  const float factor = whole ? -last : 1;
  block_each(n * M, [&](int64_t i) { s->product[i] = weight[i / M] * t->own[i / M] * s->n1[i]; });
  add_outer(n, factor, s->x, s->product, first_layer(to, F, M));
  block_each(n * F, [&](int64_t i) { s->product[i] = weight[i / F] * t->own[i / F] * s->n2[i]; });
  add_outer(n, factor, s->x2, s->product, second_layer(to, F, M));
  if (s->complete && !whole) block_each(P, [&](int64_t i) { s->A[i] -= last * s->gathered[i]; });
}

/* What the tokens write, from the gradients of A, or of what is gathered and kept, behind them: these become those before. */
static inline __device__ void write_memory_backward(cuda_mlp_chunk *s, float *dk, float *dx2) {
  const int64_t n = s->n, F = s->F, M = s->M, P = s->P;
  mlp_tokens *t = s->token;
  const float factor = s->complete ? -t->place[n - 1] : 1, lag = t->lag[n - 1], keep = t->keep[n - 1];
  float *base = s->complete ? s->dA : s->dgathered;
  gather_layer_backward(*s, first_layer(base, F, M), factor, s->x, s->n1, dk, s->dn1);
  gather_layer_backward(*s, second_layer(base, F, M), factor, s->x2, s->n2, dx2, s->dn2);
  float along =
      s->phase ? lag * block_inner_product(P, base, s->gathered) : 0; /* <base, gathered>, before, then behind */
  s->across = factor * along;
  for (int64_t j = 0; j < n; j++) along += s->decay[(n - 1) * n + j] * t->own[j] * t->inner[j];
  block_each(n, [&](int64_t j) {
    const float inner = factor * s->decay[(n - 1) * n + j] * t->inner[j];
    t->down[j] += inner;
    t->to_state[j] = inner * t->own[j];
    if (s->complete && j == n - 1) t->dplace[j] -= along;
  });
  if (s->phase) block_each(P, [&](int64_t i) { s->dgathered[i] = factor * lag * base[i]; });
  if (!s->retention) return;
  if (s->complete) s->dkept = block_inner_product(P, s->dA, s->A);
  s->across += keep * s->dkept;
  s->dkept *= lag;
  if (s->complete) block_each(P, [&](int64_t i) { s->dA[i] *= keep; });
}

/* The gradients of places, rates and the paths between tokens from that of the mask. */
static inline __device__ void mlp_mask_backward(const cuda_mlp_chunk &s) {
  const int64_t n = s.n;
  mlp_tokens *t = s.token;
  block_each(n, [&](int64_t j) { /* paths from token j; masked: those that pass each gate */
                                 float paths = 0;
                                 for (int64_t i = n - 1; i >= j; i--) {
                                   const float slope = s.dmask[i * n + j] * s.decay[i * n + j] * t->place[i];
                                   t->down[j] += slope;
                                   if (i == j) continue;
                                   paths += slope * t->own[j];
                                   s.masked[i * n + j] = paths;
                                 }
  });
  block_each(n, [&](int64_t i) {
    float between = 0;
    for (int64_t j = 0; j <= i; j++) {
      t->dplace[i] += s.dmask[i * n + j] * s.decay[i * n + j] * t->own[j];
      if (j < i) between += s.masked[i * n + j];
    }
    t->between[i] = between;
  });
}

/* On entry s->A and what is gathered and kept are those before the tokens, the gradients in s->dA, s->dgathered and s->dkept those behind
 * them; on return these are those before. dz2 holds do in its second half, zero where there is none. dweight and dbias are added to. */
static inline __device__ void chunk_backward(cuda_mlp_chunk *s, float *dweight, float *dbias) {
  const int64_t n = s->n, F = s->F, M = s->M, P = s->P;
  const mlp_layer first = first_layer(s->memory, F, M), second = second_layer(s->memory, F, M);
  float *x2 = s->x2, *u = x2 + n * M, *dx2 = s->dx2, *du = dx2 + n * M, *dh = du;
  float *dz1 = s->dz1, *dy1 = dz1 + n * M, *dz2 = s->dz2, *dk = s->dx, *dq = dk + n * F;
  mlp_tokens *t = s->token;
  find_gradients(*s);
  read_memory(*s);
  block_each(CHUNK, [&](int64_t i) {
    t->dplace[i] = t->down[i] = t->dthreshold[i] = t->inner[i] = t->from_state[i] = t->to_state[i] = 0;
  });
  block_each(n * n, [&](int64_t i) { s->dmask[i] = 0; });
  write_memory_backward(s, dk, dx2);
  if (s->map.kind != COMBA_MEMORY_LINEAR) block_copy(P, NULL, s->dmemory);

  /* what they read */
  read_layer_backward(s, second, second_layer(s->gathered, F, M), second_layer(s->dgathered, F, M), u, x2, s->n2,
                      s->score2, dz2 + n * F, du, dx2, s->dn2);
  block_each(n * M, [&](int64_t i) { dy1[i] = du[i] * s->slope[n * M + i]; });
  read_layer_backward(s, first, first_layer(s->gathered, F, M), first_layer(s->dgathered, F, M), s->x + n * F, s->x,
                      s->n1, s->score1, dy1, dq, dk, s->dn1);

  /* what they write, as a function of the memory; dh takes the place of du, which has been used */
  block_each(n * M, [&](int64_t i) {
    float slope, curve;
    gelu_of(s->z1[i], &slope, &curve);
    dh[i] = s->dn1[i] * slope;
    dz1[i] = s->dn1[i] * s->h[i] * curve;
  });
  block_product(n, F, M, 1, rows_of(dh, M), rows_of(second.w, F), 1, s->dn2);
  normed_loss_backward<CHUNK>(s->loss, n, s->z2, s->target, t->threshold, s->dn2, dz2, s->dtarget, t->dthreshold,
                              dweight, dbias);
  block_product(n, M, F, 1, rows_of(dz2, F), transposed(second.w, F), 1, dx2);
  block_each(n * M, [&](int64_t i) { dz1[i] += dx2[i] * s->slope[i]; });
  block_product(n, F, M, 1, rows_of(dz1, M), transposed(first.w, M), 1, dk);
  block_each(n * F, [&](int64_t i) { dk[i] -= s->dtarget[i]; });

  const mlp_layer dsecond = second_layer(s->dmemory, F, M);
  add_outer(2 * n, 1, s->x, dz1, first_layer(s->dmemory, F, M));
  add_outer(2 * n, 1, x2, dz2, dsecond);
  block_product(M, F, n, 1, transposed(dh, M), rows_of(s->n2, F), 1, dsecond.w);
  map_layers_backward(*s);
  mlp_mask_backward(*s);
}

#endif
