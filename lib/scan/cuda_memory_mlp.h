/* Chunks of the two-layer memory: memory_mlp_chunk.c has the formulas and says what the names mean.
 *
 * The hidden channels of a memory are shared out among the blocks of a cluster, `slices` of them with M channels each: layers are sliced, so
 * are all rows of M channels, and each block has its own part of the memory all the time. What is a sum over hidden channels (rows of F
 * channels, scores of the second layer, numbers of tokens) is in parts until the blocks add them up, in order: four times a chunk. What is
 * linear in such a sum is in parts as well; the bias of the second layer and what comes from rows of F channels alone is in the part of
 * block 0. */
#ifndef COMBA_SCAN_CUDA_MEMORY_MLP_H
#define COMBA_SCAN_CUDA_MEMORY_MLP_H

#include "scan/cuda_memory_map.h"
#include "scan/cuda_normed_loss.h"

enum { CHUNK = 64, GROUP = 4, THREADS = 512 };
enum { MOST_SLICES = 8, LEAST_SLICE = 16 /* channels */ };

/* ---- Clusters -------------------------------------------------------------------------------------------------------- */

/* Where there are none (before sm_90) a memory has one slice, and these are not called.
 *
 * All threads of a cluster, whose writes to shared memory are seen by all then. */
static __device__ inline void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* Four numbers of the shared memory of block `rank` of the cluster, which are at `place` in this block's. */
static __device__ inline float4 load_remote(const float *place, int rank) {
  float4 value = {};
#if __CUDA_ARCH__ >= 900
  uint32_t address = (uint32_t)__cvta_generic_to_shared(place);
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address)
               : "memory");
#endif
  return value;
}

/* ---- Memory ---------------------------------------------------------------------------------------------------------- */

/* A layer y = x w + b inside a memory, or its gradient; rows of w are `row` apart. */
typedef struct mlp_layer {
  int in, out, row;
  float *w, *b; /* (in,out), (out) or NULL: in block 0's part */
} mlp_layer;

/* Numbers of each token, and their gradients. The paths are those of scalar.h. */
typedef struct mlp_tokens {
  float place[CHUNK], own[CHUNK], lag[CHUNK], keep[CHUNK], threshold[CHUNK];
  float dplace[CHUNK], down[CHUNK], dthreshold[CHUNK], inner[CHUNK], along[CHUNK];
  float from_state[CHUNK], to_state[CHUNK], between[CHUNK], dretention[CHUNK];
} mlp_tokens;

typedef struct cuda_mlp_chunk {
  int F, M, n, phase; /* M: hidden channels of this block */
  int64_t start;
  int rank, slices;
  int narrow, wide, square;  /* between rows of (n,F), (n,M), (n,n) */
  int first_row, second_row; /* of the layers' matrices */
  int64_t P;                 /* floats of this block's part of a memory */
  bool complete, retention;
  memory_map map; /* linear: none; total 0: see map_of */
  cuda_normed_loss loss;
  mlp_tokens *token; /* shared by the block */
  float kept, dkept, across;
  float *parts[2]; /* what blocks add up, by turns; in shared memory */
  int turn;
  float *A, *memory, *gathered; /* (P) */
  float *decay;                 /* (n,n) */
  float *x, *target;            /* (2n,F), (n,F) */
  float *z1, *slope, *x2;       /* (2n,M) */
  float *h, *n1, *z2, *n2, *o;  /* (n,M), (n,F) */
  float *score1, *score2, *masked, *narrow_product, *wide_product;
  /* backward */
  float *memories, *dA, *dmemory, *dgathered, *dmask;
  float *dx, *dtarget, *dz1, *dx2, *dz2, *dn1, *dn2;
} cuda_mlp_chunk;

static inline __host__ __device__ int64_t mlp_part(const cuda_mlp_chunk &s) {
  const int64_t size = (int64_t)s.F * s.first_row + s.M + (int64_t)s.M * s.second_row + s.F;
  return (size + 3) / 4 * 4;
}

/* Where everything lies, s->F, s->M and s->slices being set; most used first. n: tokens of a chunk */
static inline __host__ __device__ void lay_out_mlp(cuda_mlp_chunk *s, block_arena *arena, int64_t n, bool mapped,
                                                   bool normed, bool backward) {
  s->narrow = row_stride(s->F);
  s->wide = row_stride(s->M);
  s->square = row_stride(n);
  s->first_row = mapped ? s->M : s->wide; /* maps go over all of a matrix */
  s->second_row = mapped ? s->F : s->narrow;
  s->P = mlp_part(*s);
  const int64_t P = s->P, narrow = n * s->narrow, wide = n * s->wide, square = n * s->square,
                norm = normed ? narrow : 0;
  const int64_t back = backward, map = mapped, sums = backward ? 2 * narrow + 4 * n : 0;
  const int64_t exchange = sums > narrow + square ? sums : narrow + square;
  cuda_normed_loss *l = &s->loss;
  const struct {
    float **at;
    int64_t size;
  } part[] = {{&s->parts[0], exchange},
              {&s->parts[1], exchange},
              {&s->decay, square},
              {&s->score1, square},
              {&s->score2, square},
              {&s->masked, square},
              {&s->dmask, square * back},
              {&s->x, 2 * narrow},
              {&s->target, narrow},
              {&s->z2, narrow},
              {&s->n2, narrow},
              {&s->narrow_product, narrow},
              {&s->x2, 2 * wide},
              {&s->n1, wide},
              {&s->wide_product, wide},
              {&s->A, backward ? 0 : P},
              {&s->dA, P * back},
              {&s->dz2, 2 * narrow * back},
              {&s->dn2, narrow * back},
              {&s->dx, 2 * narrow * back},
              {&s->dz1, 2 * wide * back},
              {&s->dx2, 2 * wide * back},
              {&s->dn1, wide * back},
              {&s->slope, 2 * wide},
              {&s->z1, 2 * wide},
              {&s->h, wide},
              {&s->dtarget, narrow * back},
              {&s->o, narrow},
              {&l->x, norm},
              {&l->y, norm},
              {&l->u, norm},
              {&l->g, norm},
              {&l->more, norm * back},
              {&s->memories, GROUP * P * back},
              {&s->memory, P * map},
              {&s->dmemory, P * back * map},
              {&s->gathered, P},
              {&s->dgathered, P * back}};
  for (const auto &p : part) *p.at = arena->take(p.size);
  if (!mapped) s->memory = s->A, s->dmemory = s->dA;
}

static inline __device__ mlp_layer first_layer(const cuda_mlp_chunk &s, float *memory) {
  return {s.F, s.M, s.first_row, memory, memory + s.F * s.first_row};
}
static inline __device__ mlp_layer second_layer(const cuda_mlp_chunk &s, float *memory) {
  float *const w = memory + s.F * s.first_row + s.M;
  return {s.M, s.F, s.second_row, w, s.rank ? NULL : w + s.M * s.second_row};
}

/* f(place in this block's part, number in a whole memory) for all that this block has; the second layer's bias is block 0's. */
template <class F> static __device__ inline void each_number(const cuda_mlp_chunk &s, F f) {
  const int64_t M = (int64_t)s.M * s.slices, first = s.rank * s.M, b1 = s.F * M, w2 = b1 + M + first * s.F;
  const int own_b1 = s.F * s.first_row, own_w2 = own_b1 + s.M, own_b2 = own_w2 + s.M * s.second_row;
  block_matrix(s.F, s.M, [&](int r, int c) { f(r * s.first_row + c, r * M + first + c); });
  block_each(s.M, [&](int64_t c) { f(own_b1 + c, b1 + first + c); });
  block_matrix(s.M, s.F, [&](int r, int c) { f(own_w2 + r * s.second_row + c, w2 + (int64_t)r * s.F + c); });
  if (!s.rank) block_each(s.F, [&](int64_t c) { f(own_b2 + c, 2 * s.F * M + M + c); });
}

/* ---- Sums over the cluster ------------------------------------------------------------------------------------------- */

static inline __device__ float *next_parts(cuda_mlp_chunk *s) {
  return s->parts[s->turn ^= 1];
}

/* Until all blocks have written their parts. Parts are written by turns, so that none is overwritten while another block reads it. */
static inline __device__ void publish(const cuda_mlp_chunk &s) {
  if (s.slices > 1)
    cluster_sync();
  else
    __syncthreads();
}

/* Four neighbouring sums: all parts are on their way before the first is added. */
static inline __device__ float4 sum_parts(const cuda_mlp_chunk &s, const float *part) {
  if (s.slices == 1) return *(const float4 *)part;
  float4 of[MOST_SLICES], sum = {0, 0, 0, 0};
#pragma unroll
  for (int rank = 0; rank < MOST_SLICES; rank++)
    if (rank < s.slices) of[rank] = load_remote(part, rank);
#pragma unroll
  for (int rank = 0; rank < MOST_SLICES; rank++)
    if (rank < s.slices) sum.x += of[rank].x, sum.y += of[rank].y, sum.z += of[rank].z, sum.w += of[rank].w;
  return sum;
}
/* to (rows, columns) = the sums; rows `stride` apart in both, which is a multiple of 4 */
static inline __device__ void gather_parts(const cuda_mlp_chunk &s, const float *parts, int rows, int columns,
                                           int stride, float *to) {
  const int fours = (columns + 3) / 4;
  for (int i = threadIdx.x; i < rows * fours; i += THREADS) {
    const int at = i / fours * stride + i % fours * 4;
    *(float4 *)(to + at) = sum_parts(s, parts + at);
  }
}

/* ---- Layers ---------------------------------------------------------------------------------------------------------- */

/* use(i, c, x w + b) for x (n,in), rows x_row apart; without waiting for the block */
template <class F>
static __device__ inline void start_layer(int n, const mlp_layer &l, const float *x, int x_row, F use) {
  start_product(n, l.out, l.in, rows_of(x, x_row), rows_of(l.w, l.row),
                [&](int i, int c, float sum) { use(i, c, sum + (l.b ? l.b[c] : 0)); });
}
template <class F>
static __device__ inline void apply_layer(int n, const mlp_layer &l, const float *x, int x_row, F use) {
  start_layer(n, l, x, x_row, use);
  __syncthreads();
}

/* w += factor x^T y, b += factor sum of y over n rows */
static __device__ __noinline__ void add_outer(int n, float factor, const float *x, int x_row, const float *y, int y_row,
                                              mlp_layer l) {
  start_sum(l.in, l.out, n, transposed(x, x_row), rows_of(y, y_row), factor, l.w, l.row);
  if (l.b)
    for (int c = threadIdx.x; c < l.out; c += THREADS) {
      float sum = 0;
      for (int i = 0; i < n; i++) sum += y[i * y_row + c];
      l.b[c] += factor * sum;
    }
  __syncthreads();
}

/* to (n,n) = what token i sees of token j, times `from` */
static inline __device__ float mask_of(const cuda_mlp_chunk &s, int i, int j) {
  return j <= i ? s.token->place[i] * s.decay[i * s.square + j] * s.token->own[j] : 0;
}
static __device__ __noinline__ void mask_scores(const cuda_mlp_chunk &s, const float *from, float *to) {
  block_matrix(s.n, s.n, [&](int i, int j) { to[i * s.square + j] = mask_of(s, i, j) * from[i * s.square + j]; });
}

/* From dy (n,out), which is left times e_i0: dx, overwritten, and added to: dx_key, dgradient, and the gradients of places, the mask,
 * gates and `gathered`. That of l is left to a product over more rows. `own`: what comes from dy alone is in this block's part. */
static __device__ __noinline__ void read_layer_backward(cuda_mlp_chunk *s, mlp_layer l, mlp_layer gathered,
                                                        mlp_layer dgathered, bool own, const float *x,
                                                        const float *x_key, int x_row, const float *gradient,
                                                        const float *score, float *dy, int y_row, float *product,
                                                        float *dx, float *dx_key, float *dgradient) {
  const int n = s->n, in = l.in, out = l.out, square = s->square;
  mlp_tokens *t = s->token;
  float *masked = s->masked;
  if (own) {
    mask_scores(*s, score, masked);
    block_sum_product(n, out, n, transposed(masked, square), rows_of(dy, y_row), -1, dgradient, y_row);
  }
  block_product(n, n, out, rows_of(dy, y_row), transposed(gradient, y_row), [&](int i, int j, float sum) {
    const int at = i * square + j;
    if (own) s->dmask[at] -= sum * score[at];
    masked[at] = -mask_of(*s, i, j) * sum;
  });
  start_product(n, in, n, rows_of(masked, square), rows_of(x_key, x_row),
                [&](int i, int c, float sum) { dx[i * x_row + c] = sum; });
  block_sum_product(n, in, n, transposed(masked, square), rows_of(x, x_row), 1, dx_key, x_row);
  if (s->phase) {
    apply_layer(n, gathered, x, x_row, [&](int i, int c, float y) { product[i * y_row + c] = y; });
    block_rows(n, [&](int64_t i, int lane) {
      const float along = t->lag[i] * warp_inner_product(out, dy + i * y_row, product + i * y_row);
      const float share = t->place[i] * t->lag[i];
      for (int c = lane; c < out; c += 32) product[i * y_row + c] = share * dy[i * y_row + c];
      if (lane) return;
      t->dplace[i] -= along;
      t->from_state[i] -= t->place[i] * along;
    });
    block_sum_product(n, in, out, rows_of(product, y_row), transposed(gathered.w, gathered.row), -1, dx, x_row);
    add_outer(n, -1, x, x_row, product, y_row, dgathered);
  }
  if (s->retention) {
    apply_layer(n, l, x, x_row, [&](int i, int c, float y) { product[i * y_row + c] = y; });
    block_rows(n, [&](int64_t i, int lane) {
      const float along = warp_inner_product(out, dy + i * y_row, product + i * y_row);
      if (lane) return;
      t->along[i] = along;
      t->from_state[i] += t->keep[i] * along;
    });
    for (int i = 0; i < n; i++) s->dkept += t->lag[i] * t->along[i];
  }
  block_matrix(n, out, [&](int i, int c) { dy[i * y_row + c] *= t->keep[i]; });
  block_sum_product(n, in, out, rows_of(dy, y_row), transposed(l.w, l.row), 1, dx, x_row);
}

/* Of sum_j e_nj a_j (x_j^T gradient_j, gradient_j), from `dsum` times `factor`: dx and dgradient, overwritten, and inner, added to. */
static __device__ __noinline__ void gather_layer_backward(const cuda_mlp_chunk &s, mlp_layer dsum, float factor,
                                                          const float *x, int x_row, const float *gradient, int y_row,
                                                          float *product, float *dx, float *dgradient) {
  const int n = s.n, out = dsum.out;
  mlp_tokens *t = s.token;
  apply_layer(n, dsum, x, x_row, [&](int i, int c, float y) { dgradient[i * y_row + c] = y; });
  block_rows(n, [&](int64_t j, int lane) {
    const float weight = factor * s.decay[(n - 1) * s.square + j] * t->own[j];
    const float inner = warp_inner_product(out, gradient + j * y_row, dgradient + j * y_row);
    if (!lane) t->inner[j] += inner;
    for (int c = lane; c < out; c += 32) {
      dgradient[j * y_row + c] *= weight;
      product[j * y_row + c] = weight * gradient[j * y_row + c];
    }
  });
  block_product(n, dsum.in, out, rows_of(product, y_row), transposed(dsum.w, dsum.row),
                [&](int i, int c, float sum) { dx[i * x_row + c] = sum; });
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
  const mlp_layer from[] = {first_layer(*s, s->A), second_layer(*s, s->A)};
  const mlp_layer to[] = {first_layer(*s, s->memory), second_layer(*s, s->memory)};
  for (int i = 0; i < 2; i++) map_memory(map_of(s->map, from[i]), from[i].in, from[i].out, from[i].w, to[i].w);
}

/* Adds to dA what s->dmemory, which is overwritten, means for A. */
static inline __device__ void map_layers_backward(const cuda_mlp_chunk &s) {
  if (s.map.kind == COMBA_MEMORY_LINEAR) return;
  const mlp_layer A[] = {first_layer(s, s.A), second_layer(s, s.A)};
  const mlp_layer memory[] = {first_layer(s, s.memory), second_layer(s, s.memory)};
  const mlp_layer d[] = {first_layer(s, s.dmemory), second_layer(s, s.dmemory)};
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

/* What the keys alone decide: z1, x2, z2, n2, h, n1. */
static __device__ __noinline__ void find_gradients(cuda_mlp_chunk *s) {
  const int n = s->n, narrow = s->narrow, wide = s->wide;
  const mlp_layer first = first_layer(*s, s->memory), second = second_layer(*s, s->memory);
  float *parts = next_parts(s);
  apply_layer(n, first, s->x, narrow, [&](int i, int c, float z) {
    const int at = i * wide + c;
    float curve;
    s->z1[at] = z;
    s->x2[at] = gelu_of(z, s->slope + at, &curve);
  });
  start_layer(n, second, s->x2, wide, [&](int i, int c, float z) { parts[i * narrow + c] = z; });
  publish(*s);
  gather_parts(*s, parts, n, s->F, narrow, s->z2);
  __syncthreads();
  normed_loss_forward<CHUNK>(s->loss, n, s->z2, s->target, s->token->threshold, s->n2);
  block_product(n, s->M, s->F, rows_of(s->n2, narrow), transposed(second.w, second.row), [&](int i, int c, float h) {
    const int at = i * wide + c;
    s->h[at] = h;
    s->n1[at] = h * s->slope[at];
  });
}

/* What the queries read: y1, u, the scores of both layers, and where `output` is set, o. */
static __device__ __noinline__ void read_memory(cuda_mlp_chunk *s, bool output) {
  const int n = s->n, narrow = s->narrow, wide = s->wide, square = s->square;
  const mlp_layer first = first_layer(*s, s->memory), second = second_layer(*s, s->memory);
  const mlp_tokens *t = s->token;
  const float *q = s->x + n * narrow;
  float *y1 = s->z1 + n * wide, *u = s->x2 + n * wide, *slope = s->slope + n * wide;
  float *parts = next_parts(s), *score_parts = parts + n * narrow;
  start_layer(n, first, q, narrow, [&](int i, int c, float y) { y1[i * wide + c] = t->keep[i] * y; });
  block_product(n, n, s->F, rows_of(q, narrow), transposed(s->x, narrow), [&](int i, int j, float sum) {
    s->score1[i * square + j] = 1 + sum;
    s->masked[i * square + j] = mask_of(*s, i, j) * (1 + sum);
  });
  if (s->phase)
    apply_layer(n, first_layer(*s, s->gathered), q, narrow,
                [&](int i, int c, float y) { y1[i * wide + c] -= t->place[i] * t->lag[i] * y; });
  block_product(n, s->M, n, rows_of(s->masked, square), rows_of(s->n1, wide), [&](int i, int c, float sum) {
    const int at = i * wide + c;
    float curve;
    y1[at] -= sum;
    u[at] = gelu_of(y1[at], slope + at, &curve);
  });
  start_product(n, n, s->M, rows_of(u, wide), transposed(s->x2, wide),
                [&](int i, int j, float sum) { score_parts[i * square + j] = sum + (s->rank ? 0 : 1); });
  if (output) {
    apply_layer(n, second, u, wide, [&](int i, int c, float y) { parts[i * narrow + c] = t->keep[i] * y; });
    if (s->phase)
      start_layer(n, second_layer(*s, s->gathered), u, wide,
                  [&](int i, int c, float y) { parts[i * narrow + c] -= t->place[i] * t->lag[i] * y; });
  }
  publish(*s);
  gather_parts(*s, score_parts, n, n, square, s->score2);
  if (!output) {
    __syncthreads();
    return;
  }
  gather_parts(*s, parts, n, s->F, narrow, s->o);
  __syncthreads();
  mask_scores(*s, s->score2, s->masked);
  block_sum_product(n, s->F, n, rows_of(s->masked, square), rows_of(s->n2, narrow), -1, s->o, narrow);
}

/* A, or what is gathered, after the tokens. */
static __device__ __noinline__ void write_memory(cuda_mlp_chunk *s) {
  const int n = s->n, narrow = s->narrow, wide = s->wide;
  const int64_t P = s->P;
  const mlp_tokens *t = s->token;
  const float last = t->place[n - 1], lag = t->lag[n - 1], *weight = s->decay + (n - 1) * s->square;
  const bool whole = s->complete && !s->phase; /* nothing needs to be gathered */
  s->kept = t->keep[n - 1];
  if (!whole) block_each(P, [&](int64_t i) { s->gathered[i] = s->phase ? lag * s->gathered[i] : 0; });
  if (s->complete && s->retention) block_each(P, [&](int64_t i) { s->A[i] *= s->kept; });
  float *to = whole ? s->A : s->gathered;
  const float factor = whole ? -last : 1;
  block_matrix(n, s->M,
               [&](int i, int c) { s->wide_product[i * wide + c] = weight[i] * t->own[i] * s->n1[i * wide + c]; });
  block_matrix(n, s->F, [&](int i, int c) {
    s->narrow_product[i * narrow + c] = weight[i] * t->own[i] * s->n2[i * narrow + c];
  });
  add_outer(n, factor, s->x, narrow, s->wide_product, wide, first_layer(*s, to));
  add_outer(n, factor, s->x2, wide, s->narrow_product, narrow, second_layer(*s, to));
  if (s->complete && !whole) block_each(P, [&](int64_t i) { s->A[i] -= last * s->gathered[i]; });
}

/* What the tokens write, from the gradients of A, or of what is gathered and kept, behind them: these become those before. */
static inline __device__ void write_memory_backward(cuda_mlp_chunk *s, float *dk, float *dx2) {
  const int n = s->n, narrow = s->narrow, wide = s->wide;
  const int64_t P = s->P;
  mlp_tokens *t = s->token;
  const float *decay = s->decay + (n - 1) * s->square;
  const float factor = s->complete ? -t->place[n - 1] : 1, lag = t->lag[n - 1], keep = t->keep[n - 1];
  float *base = s->complete ? s->dA : s->dgathered;
  gather_layer_backward(*s, first_layer(*s, base), factor, s->x, narrow, s->n1, wide, s->wide_product, dk, s->dn1);
  gather_layer_backward(*s, second_layer(*s, base), factor, s->x2, wide, s->n2, narrow, s->narrow_product, dx2, s->dn2);
  float along =
      s->phase ? lag * block_inner_product(P, base, s->gathered) : 0; /* <base, gathered>, before, then behind */
  s->across = factor * along;
  for (int j = 0; j < n; j++) along += decay[j] * t->own[j] * t->inner[j];
  block_each(n, [&](int64_t j) {
    const float inner = factor * decay[j] * t->inner[j];
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
  const int n = s.n, square = s.square;
  mlp_tokens *t = s.token;
  block_each(n, [&](int64_t j) { /* paths from token j; masked: those that pass each gate */
                                 float paths = 0;
                                 for (int i = n - 1; i >= j; i--) {
                                   const int at = i * square + (int)j;
                                   const float slope = s.dmask[at] * s.decay[at] * t->place[i];
                                   t->down[j] += slope;
                                   if (i == j) continue;
                                   paths += slope * t->own[j];
                                   s.masked[at] = paths;
                                 }
  });
  block_rows(n, [&](int64_t i, int lane) {
    float between = 0, place = 0;
    for (int j = lane; j <= i; j += 32) {
      const int at = (int)i * square + j;
      place += s.dmask[at] * s.decay[at] * t->own[j];
      if (j < i) between += s.masked[at];
    }
    place = warp_sum(place);
    between = warp_sum(between);
    if (lane) return;
    t->dplace[i] += place;
    t->between[i] = between;
  });
}

/* On entry s->A and what is gathered and kept are those before the tokens, the gradients in s->dA, s->dgathered and s->dkept those behind
 * them; on return these are those before. dz2 holds do in its second half, zero where there is none. dweight and dbias are added to.
 * Gradients of keys and queries and of tokens' numbers but the threshold are in parts. */
static inline __device__ void chunk_backward(cuda_mlp_chunk *s, float *dweight, float *dbias) {
  const int n = s->n, narrow = s->narrow, wide = s->wide, square = s->square;
  const int64_t P = s->P;
  const mlp_layer first = first_layer(*s, s->memory), second = second_layer(*s, s->memory);
  float *x2 = s->x2, *u = x2 + n * wide, *dx2 = s->dx2, *du = dx2 + n * wide, *dh = du;
  float *dz1 = s->dz1, *dy1 = dz1 + n * wide, *dz2 = s->dz2, *dk = s->dx, *dq = dk + n * narrow;
  mlp_tokens *t = s->token;
  find_gradients(s);
  read_memory(s, false);
  block_each(CHUNK, [&](int64_t i) {
    t->dplace[i] = t->down[i] = t->dthreshold[i] = t->inner[i] = t->from_state[i] = t->to_state[i] = 0;
  });
  block_each(n * square, [&](int64_t i) { s->dmask[i] = 0; });
  write_memory_backward(s, dk, dx2);
  if (s->map.kind != COMBA_MEMORY_LINEAR) block_copy(P, NULL, s->dmemory);

  /* what they read */
  read_layer_backward(s, second, second_layer(*s, s->gathered), second_layer(*s, s->dgathered), !s->rank, u, x2, wide,
                      s->n2, s->score2, dz2 + n * narrow, narrow, s->narrow_product, du, dx2, s->dn2);
  block_matrix(n, s->M, [&](int i, int c) {
    const int at = i * wide + c;
    dy1[at] = du[at] * s->slope[n * wide + at];
  });
  read_layer_backward(s, first, first_layer(*s, s->gathered), first_layer(*s, s->dgathered), true, s->x + n * narrow,
                      s->x, narrow, s->n1, s->score1, dy1, wide, s->wide_product, dq, dk, s->dn1);

  /* what they write, as a function of the memory; dh takes the place of du, which has been used */
  block_matrix(n, s->M, [&](int i, int c) {
    const int at = i * wide + c;
    float slope, curve;
    gelu_of(s->z1[at], &slope, &curve);
    dh[at] = s->dn1[at] * slope;
    dz1[at] = s->dn1[at] * s->h[at] * curve;
  });
  float *parts = next_parts(s);
  start_product(n, s->F, s->M, rows_of(dh, wide), rows_of(second.w, second.row),
                [&](int i, int c, float sum) { parts[i * narrow + c] = s->dn2[i * narrow + c] + sum; });
  publish(*s);
  gather_parts(*s, parts, n, s->F, narrow, s->dn2);
  __syncthreads();
  normed_loss_backward<CHUNK>(s->loss, n, s->z2, s->target, t->threshold, s->dn2, dz2, s->dtarget, t->dthreshold,
                              dweight, dbias);
  block_product(n, s->M, s->F, rows_of(dz2, narrow), transposed(second.w, second.row), [&](int i, int c, float sum) {
    const int at = i * wide + c;
    dz1[at] += (dx2[at] + sum) * s->slope[at];
  });
  block_update(
      n, s->F, s->M, rows_of(dz1, wide), transposed(first.w, first.row),
      [&](int i, int c) { return dk[i * narrow + c] - (s->rank ? 0 : s->dtarget[i * narrow + c]); },
      [&](int i, int c, float sum, float old) { dk[i * narrow + c] = old + sum; });

  const mlp_layer dsecond = second_layer(*s, s->dmemory);
  add_outer(2 * n, 1, s->x, narrow, dz1, wide, first_layer(*s, s->dmemory));
  add_outer(2 * n, 1, x2, wide, dz2, narrow, dsecond);
  block_sum_product(s->M, s->F, n, transposed(dh, wide), rows_of(s->n2, narrow), 1, dsecond.w, dsecond.row);
  map_layers_backward(*s);
  mlp_mask_backward(*s);
}

#endif
