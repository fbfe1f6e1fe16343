/* A chunk of the matrix memory for a block of threads: what reads and gathers, given the rows n_t of its gradient, as memory_linear.c and
 * memory_mapped.c do it. All matrices are float, in the workspace of the block. */
#ifndef COMBA_SCAN_CUDA_MEMORY_H
#define COMBA_SCAN_CUDA_MEMORY_H

#include "scan/cuda_inner_loss.h"
#include "scan/cuda_memory_map.h"

enum { CHUNK = 64 }; /* tokens of a chunk at most */

/* Sums of gates, or their gradients. Row i is what token i sees of the memory before the chunk (f), the velocity (column 0 of c and p) and
 * the tokens up to it; rows and columns count from 1, CHUNK + 1 of each. */
typedef struct memory_mask {
  float *f, *c, *p;
} memory_mask;

/* Numbers of each token. */
typedef struct memory_tokens {
  float rate[CHUNK], retain[CHUNK], keep[CHUNK], weight[CHUNK], threshold[CHUNK];
} memory_tokens;

/* n tokens of a chunk, R rows and V columns; memory.h says what the fields are. */
typedef struct cuda_memory_chunk {
  int64_t n, phase, R, V;
  bool fresh, momentum, token_weight;
  memory_map map_kind;
  memory_tokens *token;                     /* shared by the block */
  float *q, *k, *target, *z, *gradient, *o; /* (n,R) and (n,V) */
  float *frozen, *running, *velocity, *map; /* (R,V) */
  /* linear */
  float *rows_a, *rows_b, *values, *scores, *products; /* (n,R), (n,V), (n,n) */
  memory_mask mask;
  /* mapped: the memory of a token (R,V); backward: A around every token (n + 1,R,V), and the gradient of a memory */
  float *memory, *states, *read;
} cuda_memory_chunk;

typedef struct cuda_memory_gradient {
  memory_tokens *token;               /* shared; zero on entry */
  float *o, *q, *k, *gradient;        /* (n,V), (n,R) */
  float *running, *velocity, *frozen; /* (R,V) */
  float *dz, *dtarget;                /* (n,V) */
  memory_mask mask;
  bool committed;
  float end;
} cuda_memory_gradient;

enum { MASK = CHUNK + 1 };

/* Where everything lies from `base` on; returns the number of floats. */
static inline __host__ __device__ int64_t lay_out_memory(cuda_memory_chunk *x, cuda_memory_gradient *g, float *base,
                                                         int64_t chunk, int64_t R, int64_t V, bool mapped,
                                                         bool backward) {
  const int64_t matrix = R * V, keys = chunk * R, values = chunk * V, square = chunk * chunk, mask = MASK * MASK;
  const bool linear_back = backward && !mapped;
  const struct {
    float **at;
    int64_t size;
  } part[] = {{&x->q, keys},
              {&x->k, keys},
              {&x->target, values},
              {&x->z, values},
              {&x->gradient, values},
              {&x->o, values},
              {&x->frozen, matrix},
              {&x->running, matrix},
              {&x->velocity, matrix},
              {&x->map, mapped ? matrix : 0},
              {&x->memory, mapped ? matrix : 0},
              {&x->states, mapped && backward ? (chunk + 1) * matrix : 0},
              {&x->read, mapped && backward ? matrix : 0},
              {&x->rows_a, mapped ? 0 : keys},
              {&x->rows_b, linear_back ? keys : 0},
              {&x->values, linear_back ? values : 0},
              {&x->scores, mapped ? 0 : square},
              {&x->products, linear_back ? square : 0},
              {&x->mask.f, mapped ? 0 : MASK},
              {&x->mask.c, mapped ? 0 : mask},
              {&x->mask.p, mapped ? 0 : mask},
              {&g->mask.f, linear_back ? MASK : 0},
              {&g->mask.c, linear_back ? mask : 0},
              {&g->mask.p, linear_back ? mask : 0},
              {&g->o, backward ? values : 0},
              {&g->q, backward ? keys : 0},
              {&g->k, backward ? keys : 0},
              {&g->gradient, backward ? values : 0},
              {&g->running, backward ? matrix : 0},
              {&g->velocity, backward ? matrix : 0},
              {&g->frozen, backward ? matrix : 0},
              {&g->dz, backward ? values : 0},
              {&g->dtarget, backward ? values : 0}};
  int64_t offset = 0;
  for (const auto &p : part) {
    *p.at = base ? base + offset : NULL;
    offset += (p.size + 3) / 4 * 4;
  }
  if (!mapped) x->map = x->frozen;
  return offset;
}

/* ---- Linear: by products with a mask -------------------------------------------------------------------------------- */

static inline __device__ void find_mask(const cuda_memory_chunk &x) {
  const memory_mask m = x.mask;
  block_each(x.n + 1, [=](int64_t j) { /* column j */
                                       float c = 0, p = j == 0, f = 1;
                                       m.c[j] = 0;
                                       m.p[j] = p;
                                       if (!j) m.f[0] = 1;
                                       for (int64_t i = 1; i <= x.n; i++) {
                                         const float retain = x.token->retain[i - 1];
                                         p = j == i ? 1 : x.token->keep[i - 1] * p;
                                         c = (j < i ? retain * c + p : (j == i ? 1 : 0));
                                         f *= retain;
                                         m.c[i * MASK + j] = c;
                                         m.p[i * MASK + j] = p;
                                         if (!j) m.f[i] = f;
                                       }
  });
}

/* The gradients of the gates, from those of f, c and p, which are overwritten. */
static inline __device__ void mask_backward(const cuda_memory_chunk &x, const memory_mask &g, memory_tokens *to) {
  const memory_mask m = x.mask;
  for (int64_t i = x.n; i >= 1; i--) {
    const int64_t row = i * MASK, before = row - MASK;
    const float retain = x.token->retain[i - 1], keep = x.token->keep[i - 1];
    float to_retain = 0, to_keep = 0;
    for (int64_t j = threadIdx.x; j < i; j += blockDim.x) {
      const float dc = g.c[row + j], dp = g.p[row + j] + dc;
      to_retain += dc * m.c[before + j];
      to_keep += dp * m.p[before + j];
      g.c[before + j] += retain * dc;
      g.p[before + j] += keep * dp;
    }
    to_retain = block_sum(to_retain);
    to_keep = block_sum(to_keep);
    if (!threadIdx.x) {
      to->retain[i - 1] = to_retain + g.f[i] * m.f[i - 1];
      to->keep[i - 1] = to_keep;
      g.f[i - 1] += retain * g.f[i];
    }
    __syncthreads();
  }
}

/* What token i reads: of the memory before the chunk, of running as it was before, of the velocity before. */
enum memory_part { FROZEN, RUNNING, VELOCITY };
static inline __device__ float share_of(const cuda_memory_chunk &x, memory_part part, int64_t i) {
  const float weight = x.token->weight[i];
  if (part == FROZEN) return 1 - weight;
  if (part == VELOCITY) return weight * x.mask.c[(i + 1) * MASK];
  return weight * x.mask.f[i + 1] + (x.fresh ? 1 - weight : 0);
}

static inline __device__ bool reads_frozen(const cuda_memory_chunk &x) {
  return x.token_weight && !x.fresh;
}

/* o (n,V) = beta o + share_i memory^T q_i */
static __device__ __noinline__ void read_part(const cuda_memory_chunk &x, memory_part part, const float *memory,
                                              float beta) {
  block_each(x.n * x.R, [&](int64_t i) { x.rows_a[i] = share_of(x, part, i / x.R) * x.q[i]; });
  block_product(x.n, x.V, x.R, 1, rows_of(x.rows_a, x.R), rows_of(memory, x.V), beta, x.o);
}

/* memory = factor memory - sum_j row_j rate_j k_j n_j^T */
static __device__ __noinline__ void gather(const cuda_memory_chunk &x, const float *row, float factor, float *memory) {
  block_each(x.n * x.R, [&](int64_t i) { x.rows_a[i] = row[i / x.R + 1] * x.token->rate[i / x.R] * x.k[i]; });
  block_product(x.R, x.V, x.n, -1, transposed(x.rows_a, x.R), rows_of(x.gradient, x.V), factor, memory);
}

static inline __device__ void linear_forward(const cuda_memory_chunk &x) {
  const int64_t n = x.n, R = x.R, V = x.V;
  const memory_mask m = x.mask;
  find_mask(x);
  read_part(x, RUNNING, x.running, 0);
  if (reads_frozen(x)) read_part(x, FROZEN, x.frozen, 1);
  if (x.momentum) read_part(x, VELOCITY, x.velocity, 1);
  block_product(n, n, R, 1, rows_of(x.q, R), transposed(x.k, R), 0, x.scores);
  block_each(n * n, [&](int64_t at) {
    const int64_t i = at / n, j = at % n;
    x.scores[at] = j <= i ? x.token->weight[i] * m.c[(i + 1) * MASK + j + 1] * x.token->rate[j] * x.scores[at] : 0;
  });
  block_product(n, V, n, -1, rows_of(x.scores, n), rows_of(x.gradient, V), 1, x.o);
  gather(x, m.c + n * MASK, m.f[n], x.running);
  if (!x.momentum) return;
  block_each(R * V, [&](int64_t i) { x.running[i] += m.c[n * MASK] * x.velocity[i]; });
  gather(x, m.p + n * MASK, m.p[n * MASK], x.velocity);
}

/* What reading a part leaves: the query's gradient, that of the share of token i in `to_share` (n), and of the matrix,
 * factor gradient + sum_i share_i q_i do_i^T. */
static __device__ __noinline__ void read_part_backward(const cuda_memory_chunk &x, const cuda_memory_gradient &g,
                                                       memory_part part, const float *matrix, float factor,
                                                       float *matrix_gradient, float *to_share) {
  const int64_t n = x.n, R = x.R, V = x.V;
  block_product(n, R, V, 1, rows_of(g.o, V), transposed(matrix, V), 0, x.rows_a);
  block_rows(n, [&](int64_t i, int lane) {
    const float sum = warp_inner_product(R, x.q + i * R, x.rows_a + i * R), share = share_of(x, part, i);
    if (!lane) to_share[i] = sum;
    for (int64_t c = lane; c < R; c += 32) {
      g.q[i * R + c] += share * x.rows_a[i * R + c];
      x.rows_b[i * R + c] = share * x.q[i * R + c];
    }
  });
  block_product(R, V, n, 1, transposed(x.rows_b, R), rows_of(g.o, V), factor, matrix_gradient);
}

/* What E = ... - sum_j row_j rate_j k_j n_j^T, with the gradient G of which `end` counts, leaves to the keys, the rows n_j and the mask's
 * row; inner[j] = <k_j, G n_j> rate_j. */
static __device__ __noinline__ void gather_backward(const cuda_memory_chunk &x, const cuda_memory_gradient &g,
                                                    const float *row, const float *G, float end, float *row_gradient,
                                                    float *inner) {
  const int64_t n = x.n, R = x.R, V = x.V;
  block_product(n, R, V, 1, rows_of(x.gradient, V), transposed(G, V), 0, x.rows_a);
  block_product(n, V, R, 1, rows_of(x.k, R), rows_of(G, V), 0, x.values);
  block_rows(n, [&](int64_t j, int lane) {
    const float rate = x.token->rate[j], share = end * row[j + 1] * rate;
    const float product = warp_inner_product(R, x.k + j * R, x.rows_a + j * R);
    for (int64_t c = lane; c < R; c += 32) g.k[j * R + c] -= share * x.rows_a[j * R + c];
    for (int64_t c = lane; c < V; c += 32) g.gradient[j * V + c] -= share * x.values[j * V + c];
    if (lane) return;
    inner[j] = rate * product;
    row_gradient[j + 1] -= end * inner[j];
    g.token->rate[j] -= end * row[j + 1] * product;
  });
}

/* Scores q_i k_j and what came out of them: sets the gradients of q, k and the rows n_j. */
static inline __device__ void scores_backward(const cuda_memory_chunk &x, const cuda_memory_gradient &g) {
  const int64_t n = x.n, R = x.R, V = x.V;
  const memory_mask m = x.mask;
  block_product(n, n, R, 1, rows_of(x.q, R), transposed(x.k, R), 0, x.scores);
  block_product(n, n, V, 1, rows_of(g.o, V), transposed(x.gradient, V), 0, x.products);
  /* a thread a row for the weights, then a thread a column for the rates */
  block_each(n, [&](int64_t i) {
    float to_weight = 0;
    for (int64_t j = 0; j <= i; j++) {
      const int64_t at = i * n + j, c = (i + 1) * MASK + j + 1;
      const float both = x.scores[at] * x.products[at];
      to_weight -= m.c[c] * x.token->rate[j] * both;
      g.mask.c[c] -= x.token->weight[i] * x.token->rate[j] * both;
    }
    g.token->weight[i] += to_weight;
  });
  block_each(n, [&](int64_t j) {
    float to_rate = 0;
    for (int64_t i = j; i < n; i++)
      to_rate -= x.token->weight[i] * m.c[(i + 1) * MASK + j + 1] * x.scores[i * n + j] * x.products[i * n + j];
    g.token->rate[j] += to_rate;
  });
  block_each(n * n, [&](int64_t at) {
    const int64_t i = at / n, j = at % n;
    const float share = j <= i ? x.token->weight[i] * m.c[(i + 1) * MASK + j + 1] * x.token->rate[j] : 0;
    x.scores[at] *= share;
    x.products[at] *= share;
  });
  block_product(n, V, n, -1, transposed(x.scores, n), rows_of(g.o, V), 0, g.gradient);
  block_product(n, R, n, -1, rows_of(x.products, n), rows_of(x.k, R), 0, g.q);
  block_product(n, R, n, -1, transposed(x.products, n), rows_of(x.q, R), 0, g.k);
}

static inline __device__ void linear_backward(const cuda_memory_chunk &x, const cuda_memory_gradient &g) {
  __shared__ float to_share[CHUNK], inner[CHUNK];
  const int64_t n = x.n, size = x.R * x.V, last = n * MASK;
  const memory_mask m = x.mask, dm = g.mask;
  find_mask(x);
  block_each((n + 1) * MASK, [&](int64_t i) { dm.c[i] = dm.p[i] = 0; });
  block_each(n + 1, [&](int64_t i) { dm.f[i] = 0; });
  scores_backward(x, g);
  gather_backward(x, g, m.c + last, g.running, g.end, dm.c + last, inner);
  const bool weighted = x.token_weight && g.committed;
  const float across = block_inner_product(size, g.running, x.running);
  const float across_frozen = weighted ? block_inner_product(size, g.running, x.frozen) : 0;
  if (!threadIdx.x) {
    dm.f[n] += g.end * across;
    if (weighted) {
      float to_weight = m.f[n] * across - across_frozen;
      for (int64_t j = 0; j < n; j++) to_weight -= m.c[last + j + 1] * inner[j];
      g.token->weight[n - 1] += to_weight;
    }
  }
  __syncthreads();
  if (weighted) block_each(size, [&](int64_t i) { g.frozen[i] += (1 - g.end) * g.running[i]; });
  if (x.momentum) {
    gather_backward(x, g, m.p + last, g.velocity, 1, dm.p + last, inner);
    const float across_velocity = block_inner_product(size, g.running, x.velocity);
    const float across_both = block_inner_product(size, g.velocity, x.velocity);
    if (!threadIdx.x) {
      dm.p[last] += across_both;
      dm.c[last] += g.end * across_velocity;
      if (g.committed) g.token->weight[n - 1] += m.c[last] * across_velocity;
    }
    __syncthreads();
    block_each(size, [&](int64_t i) { g.velocity[i] = m.p[last] * g.velocity[i] + g.end * m.c[last] * g.running[i]; });
    read_part_backward(x, g, VELOCITY, x.velocity, 1, g.velocity, to_share);
    block_each(n, [&](int64_t i) {
      g.token->weight[i] += m.c[(i + 1) * MASK] * to_share[i];
      dm.c[(i + 1) * MASK] += x.token->weight[i] * to_share[i];
    });
  }
  read_part_backward(x, g, RUNNING, x.running, g.end * m.f[n], g.running, to_share);
  block_each(n, [&](int64_t i) {
    dm.f[i + 1] += x.token->weight[i] * to_share[i];
    g.token->weight[i] += (m.f[i + 1] - (x.fresh ? 1 : 0)) * to_share[i];
  });
  if (reads_frozen(x)) {
    read_part_backward(x, g, FROZEN, x.frozen, 1, g.frozen, to_share);
    block_each(n, [&](int64_t i) { g.token->weight[i] -= to_share[i]; });
  }
  mask_backward(x, dm, g.token);
}

/* ---- Mapped: token by token ----------------------------------------------------------------------------------------- */

/* to (R,V) = retain from - rate k_i n_i^T; the two may be one */
static __device__ __noinline__ void take_step(const cuda_memory_chunk &x, int64_t i, const float *from, float *to) {
  const float rate = x.token->rate[i], retain = x.token->retain[i];
  block_each(x.R * x.V, [&](int64_t at) {
    to[at] = retain * from[at] - rate * x.k[i * x.R + at / x.V] * x.gradient[i * x.V + at % x.V];
  });
}

static inline __device__ void mapped_forward(const cuda_memory_chunk &x) {
  for (int64_t i = 0; i < x.n; i++) {
    take_step(x, i, x.running, x.running);
    map_memory(x.map_kind, x.R, x.V, x.running, x.memory);
    block_product(1, x.V, x.R, 1, rows_of(x.q + i * x.R, x.R), rows_of(x.memory, x.V), 0, x.o + i * x.V);
  }
}

/* The gradient of A after token i, through what the token reads and then through its step. */
static inline __device__ void token_backward(const cuda_memory_chunk &x, const cuda_memory_gradient &g, int64_t i) {
  const int64_t R = x.R, V = x.V, size = R * V;
  const float *before = x.states + i * size, *after = before + size, *output = g.o + i * V;
  const float *q = x.q + i * R, *k = x.k + i * R, *n = x.gradient + i * V;
  const float rate = x.token->rate[i], retain = x.token->retain[i];
  map_memory(x.map_kind, R, V, after, x.memory);
  block_rows(R, [&](int64_t r, int lane) {
    const float product = warp_inner_product(V, x.memory + r * V, output);
    if (!lane) g.q[i * R + r] = product;
    for (int64_t c = lane; c < V; c += 32) x.read[r * V + c] = q[r] * output[c];
  });
  map_backward(x.map_kind, R, V, after, x.memory, x.read);
  block_add(size, x.read, g.running);
  float to_rate = 0;
  block_rows(R, [&](int64_t r, int lane) {
    const float product = warp_inner_product(V, g.running + r * V, n);
    if (lane) return;
    g.k[i * R + r] = -rate * product;
    to_rate -= k[r] * product;
  });
  to_rate = block_sum(to_rate);
  const float to_retain = block_inner_product(size, g.running, before);
  if (!threadIdx.x) {
    g.token->rate[i] = to_rate;
    g.token->retain[i] = to_retain;
  }
  block_product(1, V, R, -rate, rows_of(k, R), rows_of(g.running, V), 0, g.gradient + i * V);
  block_each(size, [&](int64_t at) { g.running[at] *= retain; });
}

static inline __device__ void mapped_backward(const cuda_memory_chunk &x, const cuda_memory_gradient &g) {
  const int64_t size = x.R * x.V;
  block_copy(size, x.running, x.states);
  for (int64_t i = 0; i < x.n; i++) take_step(x, i, x.states + i * size, x.states + (i + 1) * size);
  for (int64_t i = x.n - 1; i >= 0; i--) token_backward(x, g, i);
}

#endif
