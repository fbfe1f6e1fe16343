/* The matrix memory backward: `prepare_linear` and `prepare_mapped`, a block a chunk, are what reading leaves to the rows n and to the memory
 * that the chunk starts with; `walk_back`, a block a sequence and head, passes the memory's gradient from chunk to chunk; `finish`, a block
 * a chunk, is all that this gradient leaves to the tokens. */
#ifndef COMBA_SCAN_CUDA_MEMORY_GRADIENT_H
#define COMBA_SCAN_CUDA_MEMORY_GRADIENT_H

#include "scan/cuda_memory_forward.h"

/* z and the rows n of a chunk, to the block's memory and for the kernels that follow; memory: the map of what the chunk starts with */
static inline __device__ void find_gradients(const memory_problem &p, const memory_task &t, const memory_chunk &x,
                                             const memory_tokens &token, const float *k, const float *memory, int row,
                                             const float *target, float *z, float *n) {
  block_product(x.n, p.V, p.R, rows_of(k, p.key_row), rows_of(memory, row),
                [&](int i, int j, float sum) { z[i * p.value_row + j] = sum; });
  inner_loss_forward(t.loss, x.n, z, target, token.threshold, n);
  block_matrix(x.n, p.V, [&](int i, int c) {
    const int64_t to = (x.row + i * p.heads) * p.V + c;
    p.z[to] = z[i * p.value_row + c];
    p.n[to] = n[i * p.value_row + c];
  });
}

/* ---- What reading leaves --------------------------------------------------------------------------------------------- */

struct prepare_memory {
  float *q, *k, *target, *z, *n, *o; /* o: its gradient */
  float *scores;                     /* linear */
  memory_mask mask;
  float *A, *memory, *read, *D, *partial; /* mapped: (R,V), (WARPS,V) */
  block_arena used;
};

static inline __host__ __device__ prepare_memory prepare_memory_of(const memory_problem &p, block_arena arena) {
  const int64_t keys = p.chunk * p.key_row, values = p.chunk * p.value_row, matrix = p.R * p.matrix_row;
  prepare_memory m = {};
  m.q = arena.take(keys);
  m.k = arena.take(keys);
  m.target = arena.take(values);
  m.z = arena.take(values);
  m.n = arena.take(values);
  m.o = arena.take(values);
  m.mask = take_mask(p, &arena);
  if (p.mapped) {
    m.A = arena.take(matrix);
    m.memory = arena.take(matrix);
    m.read = arena.take(matrix);
    m.D = arena.take(matrix);
    m.partial = arena.take(WARPS * p.V);
  } else {
    m.scores = arena.take(p.chunk * p.token_row);
  }
  m.used = arena;
  return m;
}

template <class T>
static __device__ inline void load_prepared(const memory_problem &p, const memory_chunk &x, memory_tokens *token,
                                            const prepare_memory &m) {
  load_tokens(p, x, token);
  load_keys<T>(p, x, Q, m.q);
  load_keys<T>(p, x, KEY, m.k);
  load_targets<T>(p, x, m.target);
  load_rows<T>(p, x, p.output_gradient, p.V, m.o, p.value_row);
  __syncthreads();
  find_mask(*token, x.n, m.mask);
}

/* to (R,V) = sum_i share(i) q_i do_i^T; scaled (n,V) is overwritten */
template <class F>
static __device__ inline void reading_gradient(const memory_problem &p, const memory_chunk &x, const prepare_memory &m,
                                               float *to, F share) {
  block_matrix(x.n, p.V, [&](int i, int c) { m.z[i * p.value_row + c] = share(i) * m.o[i * p.value_row + c]; });
  block_product(p.R, p.V, x.n, transposed(m.q, p.key_row), rows_of(m.z, p.value_row),
                [&](int i, int j, float sum) { to[i * p.V + j] = sum; });
}

template <class T> static __global__ void __launch_bounds__(THREADS, 2) prepare_linear(const memory_problem p) {
  extern __shared__ int4 shared[];
  __shared__ memory_tokens token;
  memory_task t;
  memory_chunk x;
  if (!find_chunk(p, &t, &x)) return;
  const prepare_memory m = prepare_memory_of(p, arena_of(p, shared));
  const int64_t size = matrix_size(p);
  float *gradient = matrices_at(p, p.read_gradient, x);
  load_prepared<T>(p, x, &token, m);
  find_gradients(p, t, x, token, m.k, matrices_at(p, p.memories, x), p.V, m.target, m.z, m.n);
  block_product(x.n, x.n, p.R, rows_of(m.q, p.key_row), transposed(m.k, p.key_row), [&](int i, int j, float score) {
    m.scores[i * p.token_row + j] = score_share(token, m.mask, i, j) * score;
  });
  block_product(x.n, p.V, x.n, transposed(m.scores, p.token_row), rows_of(m.o, p.value_row),
                [&](int i, int j, float sum) { p.dn[(x.row + i * p.heads) * p.V + j] = -sum; });
  reading_gradient(p, x, m, gradient, [&](int i) { return memory_share(token, m.mask, i); });
  if (p.momentum) reading_gradient(p, x, m, gradient + size, [&](int i) { return velocity_share(token, m.mask, i); });
  if (!x.fresh)
    reading_gradient(p, x, m, p.gathered_gradient + (t.sequence * p.heads + t.head) * size,
                     [&](int i) { return gathered_share(token, m.mask, i); });
}

/* A (R,V) after `count` tokens */
static inline __device__ void find_memory(const memory_problem &p, const memory_chunk &x, const memory_tokens &token,
                                          const prepare_memory &m, int count) {
  const float *memory = matrices_at(p, p.memories, x), *row = m.mask.c + count * m.mask.row + 1;
  block_matrix(count, p.V, [&](int j, int c) {
    const int at = j * p.value_row + c;
    m.z[at] = row[j] * token.rate[j] * m.n[at];
  });
  block_product(p.R, p.V, count, transposed(m.k, p.key_row), rows_of(m.z, p.value_row), [&](int r, int c, float sum) {
    const int at = r * p.V + c;
    m.A[r * p.matrix_row + c] = m.mask.f[count] * (memory[at] + (x.fresh ? 0 : x.gathered[at])) - sum;
  });
}

/* Token by token from the last, D the gradient of A after token i by what it and later ones read. */
template <class T> static __global__ void __launch_bounds__(THREADS, 2) prepare_mapped(const memory_problem p) {
  extern __shared__ int4 shared[];
  __shared__ memory_tokens token;
  memory_task t;
  memory_chunk x;
  if (!find_chunk(p, &t, &x)) return;
  const prepare_memory m = prepare_memory_of(p, arena_of(p, shared));
  const int R = p.R, V = p.V, row = p.matrix_row;
  const float *memory = matrices_at(p, p.memories, x);
  float *gradient = matrices_at(p, p.read_gradient, x);
  T *to_query = (T *)p.gradient[Q];
  const bool accumulate = p.accumulate[Q];
  load_prepared<T>(p, x, &token, m);
  block_matrix(R, V, [&](int r, int c) {
    m.A[r * row + c] = memory[r * V + c];
    m.D[r * row + c] = 0;
  });
  map_memory(p.map, R, V, m.A, m.memory);
  find_gradients(p, t, x, token, m.k, m.memory, row, m.target, m.z, m.n);
  find_memory(p, x, token, m, x.n);
  for (int i = x.n - 1; i >= 0; i--) {
    const float *q = m.q + i * p.key_row, *k = m.k + i * p.key_row, *n = m.n + i * p.value_row;
    const float *o = m.o + i * p.value_row, rate = token.rate[i];
    const int64_t at = x.row + i * p.heads;
    map_memory(p.map, R, V, m.A, m.memory);
    block_rows(R, [&](int64_t r, int lane) {
      const float product = warp_inner_product(V, m.memory + r * row, o);
      if (!lane && to_query && r < p.K) put(to_query + at * p.K + r, product, accumulate);
      for (int c = lane; c < V; c += 32) m.read[r * row + c] = q[r] * o[c];
    });
    map_backward(p.map, R, V, m.A, m.memory, m.read);
    float to_rate = 0;
    block_rows(R, [&](int64_t r, int lane) {
      float product = 0;
      for (int c = lane; c < V; c += 32) product += (m.D[r * row + c] += m.read[r * row + c]) * n[c];
      product = warp_sum(product);
      if (lane) return;
      p.dk[at * R + r] = -rate * product;
      to_rate -= k[r] * product;
    });
    to_rate = block_sum(to_rate);
    combine_rows(p, k, m.D, m.partial, [&](int c, float sum) { p.dn[at * V + c] = -rate * sum; });
    find_memory(p, x, token, m, i);
    float to_retain = 0;
    block_matrix(R, V, [&](int r, int c) {
      float *D = m.D + r * row + c;
      to_retain += *D * m.A[r * row + c];
      *D *= token.retain[i];
    });
    to_retain = block_sum(to_retain);
    if (threadIdx.x) continue;
    p.drate[at] = to_rate;
    p.dretain[at] = to_retain;
  }
  float *gathered = x.fresh ? NULL : p.gathered_gradient + (t.sequence * p.heads + t.head) * matrix_size(p);
  block_matrix(R, V, [&](int r, int c) {
    gradient[r * V + c] = m.D[r * row + c];
    if (gathered) gathered[r * V + c] = m.D[r * row + c];
  });
}

/* ---- Chunk by chunk, backward ---------------------------------------------------------------------------------------- */

struct walk_back_memory {
  float *G, *GU, *memory,
      *read; /* (R,V): gradients of the memory and the velocity; the map, and what comes through it */
  float *k, *target, *z, *dn, *dz, *dtarget;
  block_arena used;
};

static inline __host__ __device__ walk_back_memory walk_back_memory_of(const memory_problem &p, block_arena arena) {
  const int64_t matrix = (int64_t)p.R * p.matrix_row, values = p.chunk * p.value_row;
  walk_back_memory m = {};
  m.G = arena.take(matrix);
  m.GU = p.momentum ? arena.take(matrix) : NULL;
  m.memory = p.mapped ? arena.take(matrix) : NULL;
  m.read = p.mapped ? arena.take(matrix) : NULL;
  m.k = arena.take(p.chunk * p.key_row);
  m.target = arena.take(values);
  m.z = arena.take(values);
  m.dn = arena.take(values);
  m.dz = arena.take(values);
  m.dtarget = arena.take(values);
  m.used = arena;
  return m;
}

template <class T> static __global__ void __launch_bounds__(WALK_THREADS) walk_back(const memory_problem p) {
  extern __shared__ int4 shared[];
  __shared__ memory_tokens token, token_gradient;
  __shared__ memory_end end;
  const memory_task t = task_of(p, blockIdx.x / p.heads, blockIdx.x % p.heads);
  const int R = p.R, V = p.V, row = p.matrix_row;
  const int64_t size = matrix_size(p), parts = 1 + matrices(p);
  float *parameters = p.parameter_gradients + blockIdx.x * p.parameters;
  float *to_state = p.gradient[INITIAL_STATE] ? (float *)p.gradient[INITIAL_STATE] + blockIdx.x * parts * size : NULL;
  const bool accumulate = p.accumulate[INITIAL_STATE];
  const walk_back_memory m = walk_back_memory_of(p, arena_of(p, shared));
  if (!t.length) {
    block_copy(size, NULL, parameters);
    if (to_state) block_each(parts * size, [&](int64_t i) { put(to_state + i, t.given ? t.given[i] : 0, accumulate); });
    return;
  }
  memory_chunk x = chunk_of(p, t, t.chunks - 1);
  float *saved = matrices_at(p, p.end_gradient, x);
  /* a state holds memory - learned, what was gathered, and the velocity; what a complete chunk gathered is in the memory */
  block_matrix(R, V, [&](int r, int c) {
    const int at = r * V + c;
    m.G[r * row + c] = saved[at] = t.given ? t.given[x.complete ? at : size + at] : 0;
    if (p.momentum) m.GU[r * row + c] = saved[size + at] = t.given ? t.given[2 * size + at] : 0;
  });
  for (int64_t c = t.chunks - 1; c >= 0; c--) {
    x = chunk_of(p, t, c);
    const float *read_gradient = matrices_at(p, p.read_gradient, x), *memory = matrices_at(p, p.memories, x);
    saved = c ? matrices_at(p, p.end_gradient, x) - p.heads * matrices(p) * size : NULL;
    load_tokens(p, x, &token);
    load_keys<T>(p, x, KEY, m.k);
    load_targets<T>(p, x, m.target);
    load_rows<float>(p, x, p.z, V, m.z, p.value_row);
    load_rows<float>(p, x, p.dn, V, m.dn, p.value_row);
    __syncthreads();
    find_end(p, x, token, &end);
    __syncthreads();
    const auto dn_at = [&](int i, int j) { return m.dn[i * p.value_row + j]; };
    if (p.momentum)
      block_update(
          x.n, V, R, rows_of(m.k, p.key_row), rows_of(m.GU, row), dn_at,
          [&](int i, int j, float sum, float old) { m.dn[i * p.value_row + j] = old - end.to_velocity[i] * sum; });
    block_update(x.n, V, R, rows_of(m.k, p.key_row), rows_of(m.G, row), dn_at, [&](int i, int j, float sum, float old) {
      const float dn = m.dn[i * p.value_row + j] = old - end.to_memory[i] * sum;
      p.dn[(x.row + i * p.heads) * V + j] = dn;
    });
    inner_loss_backward<CHUNK>(t.loss, x.n, m.z, m.target, token.threshold, m.dn, m.dz, m.dtarget,
                               token_gradient.threshold, NULL, NULL);
    if (p.momentum)
      block_map(
          R, V, [&](int r, int c) { return load_constant(read_gradient + size + r * V + c); },
          [&](int r, int c, float reading) {
            float *to = m.GU + r * row + c;
            const float next = *to = end.p * *to + end.end * end.c * m.G[r * row + c] + reading;
            if (saved) saved[size + r * V + c] = next;
          });
    if (p.mapped) {
      block_product(R, V, x.n, transposed(m.k, p.key_row), rows_of(m.dz, p.value_row),
                    [&](int i, int j, float sum) { m.read[i * row + j] = sum; });
      map_memory(p.map, R, V, memory, m.memory);
      map_backward(p.map, R, V, memory, m.memory, m.read);
    }
    /* through the chunk's end, past it, and by reading; then through the rows n */
    const float kept = end.end * end.f + (x.complete ? 1 - end.end : 0);
    const auto pass = [&](int i, int j) {
      const int at = i * V + j;
      const float past = x.complete || !t.given ? 0 : t.given[at] - t.given[size + at];
      return kept * m.G[i * row + j] + past + load_constant(read_gradient + at);
    };
    const auto pass_gathered = [&](int i, int j) {
      const int64_t at = blockIdx.x * size + i * V + j;
      return x.fresh ? 0 : end.end * end.f * m.G[i * row + j] + p.gathered_gradient[at];
    };
    const auto add = [&](int i, int j, float sum, float old) {
      if (to_state && !c) put(to_state + size + i * V + j, pass_gathered(i, j), accumulate);
      m.G[i * row + j] = old + sum;
      if (saved) saved[i * V + j] = old + sum;
    };
    if (p.mapped)
      block_map(R, V, pass, [&](int r, int c, float old) { add(r, c, m.read[r * row + c], old); });
    else
      block_update(R, V, x.n, transposed(m.k, p.key_row), rows_of(m.dz, p.value_row), pass, add);
  }
  block_matrix(R, V, [&](int r, int c) {
    const int at = r * V + c;
    const float G = m.G[r * row + c];
    parameters[at] = G - (t.given ? t.given[at] : 0);
    if (!to_state) return;
    put(to_state + at, G, accumulate);
    if (p.momentum) put(to_state + 2 * size + at, m.GU[r * row + c], accumulate);
  });
}

/* ---- What that leaves to the tokens ---------------------------------------------------------------------------------- */

struct finish_memory {
  float *q, *k, *dq, *dk, *rows;                 /* (n,R) */
  float *target, *z, *n, *dn, *o, *dz, *dtarget; /* (n,V) */
  float *scores, *products;                      /* (n,n) */
  memory_mask mask, gradient;
  float *memory; /* the map */
  block_arena used;
};

static inline __host__ __device__ finish_memory finish_memory_of(const memory_problem &p, block_arena arena) {
  const int64_t keys = p.chunk * p.key_row, values = p.chunk * p.value_row, square = p.chunk * p.token_row;
  finish_memory m = {};
  float **const of_keys[] = {&m.k, &m.dk, &m.rows},
                **const of_values[] = {&m.target, &m.z, &m.n, &m.dn, &m.dz, &m.dtarget};
  for (float **at : of_keys) *at = arena.take(keys);
  for (float **at : of_values) *at = arena.take(values);
  m.mask = take_mask(p, &arena);
  m.gradient = take_mask(p, &arena);
  if (p.mapped) {
    m.memory = arena.take(p.R * p.matrix_row);
  } else {
    m.q = arena.take(keys);
    m.dq = arena.take(keys);
    m.o = arena.take(values);
    m.scores = arena.take(square);
    m.products = arena.take(square);
  }
  m.used = arena;
  return m;
}

/* Scores q_i k_j and what came out of them: sets the gradients of q and k. */
static inline __device__ void scores_backward(const memory_problem &p, const memory_chunk &x,
                                              const memory_tokens &token, const finish_memory &m,
                                              memory_tokens *gradient) {
  const int n = x.n, row = p.token_row, R = p.R;
  const block_factor q = rows_of(m.q, p.key_row), k = rows_of(m.k, p.key_row), products = rows_of(m.products, row);
  block_product(n, n, R, q, transposed(m.k, p.key_row), [&](int i, int j, float sum) { m.scores[i * row + j] = sum; });
  block_product(n, n, p.V, rows_of(m.o, p.value_row), transposed(m.n, p.value_row),
                [&](int i, int j, float sum) { m.products[i * row + j] = sum; });
  /* a warp a row for the weights, then one a column for the rates */
  block_rows(n, [&](int64_t i, int lane) {
    float to_weight = 0;
    for (int j = lane; j <= i; j += 32) {
      const int c = (i + 1) * row + j + 1;
      const float both = token.rate[j] * m.scores[i * row + j] * m.products[i * row + j];
      to_weight -= m.mask.c[c] * both;
      m.gradient.c[c] -= token.weight[i] * both;
    }
    to_weight = warp_sum(to_weight);
    if (!lane) gradient->weight[i] += to_weight;
  });
  block_rows(n, [&](int64_t j, int lane) {
    float to_rate = 0;
    for (int i = (int)j + lane; i < n; i += 32)
      to_rate -= token.weight[i] * m.mask.c[(i + 1) * row + j + 1] * m.scores[i * row + j] * m.products[i * row + j];
    to_rate = warp_sum(to_rate);
    if (!lane) gradient->rate[j] += to_rate;
  });
  block_matrix(n, n, [&](int i, int j) { m.products[i * row + j] *= score_share(token, m.mask, i, j); });
  block_product(n, R, n, products, k, [&](int i, int j, float sum) { m.dq[i * p.key_row + j] = -sum; });
  block_product(n, R, n, transposed(m.products, row), q,
                [&](int i, int j, float sum) { m.dk[i * p.key_row + j] = -sum; });
}

/* What reading of a matrix leaves to the queries; use(i, gradient of the share of token i) */
template <class S, class F>
static __device__ inline void read_backward(const memory_problem &p, const memory_chunk &x, const finish_memory &m,
                                            const float *matrix, S share, F use) {
  block_product(x.n, p.R, p.V, rows_of(m.o, p.value_row), transposed(matrix, p.V),
                [&](int i, int j, float sum) { m.rows[i * p.key_row + j] = sum; });
  block_rows(x.n, [&](int64_t i, int lane) {
    const float *q = m.q + i * p.key_row, *rows = m.rows + i * p.key_row;
    const float sum = warp_inner_product(p.R, q, rows), part = share((int)i);
    for (int c = lane; c < p.R; c += 32) m.dq[i * p.key_row + c] += part * rows[c];
    if (!lane) use((int)i, sum);
  });
}

/* What end sum_j row_j rate_j k_j n_j^T, with the gradient -G (R,V), leaves to the keys, the rates and the mask's row; inner[j] =
 * rate_j <k_j, G n_j> */
static inline __device__ void gather_backward(const memory_problem &p, const memory_chunk &x,
                                              const memory_tokens &token, const finish_memory &m, const float *mask_row,
                                              const float *G, float end, float *mask_gradient, float *inner,
                                              memory_tokens *gradient) {
  block_product(x.n, p.R, p.V, rows_of(m.n, p.value_row), transposed(G, p.V),
                [&](int i, int j, float sum) { m.rows[i * p.key_row + j] = sum; });
  block_rows(x.n, [&](int64_t j, int lane) {
    const float *rows = m.rows + j * p.key_row;
    const float product = warp_inner_product(p.R, m.k + j * p.key_row, rows), share = end * mask_row[j + 1];
    for (int c = lane; c < p.R; c += 32) m.dk[j * p.key_row + c] -= share * token.rate[j] * rows[c];
    if (lane) return;
    inner[j] = token.rate[j] * product;
    mask_gradient[j + 1] -= end * inner[j];
    gradient->rate[j] -= share * product;
  });
}

/* The gradients of the gates, from those of f, c and p, which are overwritten: a thread goes back along a column, then a warp sums a row. */
static inline __device__ void mask_backward(const memory_problem &p, const memory_chunk &x, const memory_tokens &token,
                                            const memory_mask &m, const memory_mask &g, memory_tokens *to) {
  const int row = p.token_row;
  for (int j = threadIdx.x; j <= x.n; j += THREADS) {
    float c = 0, keep = 0, f = 0;
    for (int i = x.n; i > j; i--) {
      const int at = i * row + j;
      c += g.c[at];
      keep += g.p[at] + c;
      g.c[at] = c * m.c[at - row]; /* what this entry leaves to its token's two gates */
      g.p[at] = keep * m.p[at - row];
      c *= token.retain[i - 1];
      keep *= token.keep[i - 1];
      if (j) continue;
      f += g.f[i];
      g.f[i] = f * m.f[i - 1];
      f *= token.retain[i - 1];
    }
  }
  __syncthreads();
  block_rows(x.n, [&](int64_t i, int lane) {
    float to_retain = 0, to_keep = 0;
    for (int j = lane; j <= i; j += 32) {
      to_retain += g.c[(i + 1) * row + j];
      to_keep += g.p[(i + 1) * row + j];
    }
    to_retain = warp_sum(to_retain);
    to_keep = warp_sum(to_keep);
    if (lane) return;
    to->retain[i] += to_retain + g.f[i + 1];
    to->keep[i] += to_keep;
  });
}

/* What the chunk's end and its reads leave to keys, queries and gates; memory, and G, the gradient of the end: as saved. */
static inline __device__ void gates_backward(const memory_problem &p, const memory_chunk &x, const memory_tokens &token,
                                             const finish_memory &m, const float *memory, const float *G,
                                             memory_tokens *gradient) {
  __shared__ float inner[CHUNK], pushed[CHUNK];
  const int n = x.n, last = n * p.token_row;
  const int64_t size = matrix_size(p);
  const float end = x.complete ? token.weight[n - 1] : 1, *velocity = memory + size, *GU = G + size;
  const memory_mask mask = m.mask, g = m.gradient;
  gather_backward(p, x, token, m, mask.c + last, G, end, g.c + last, inner, gradient);
  const float across_memory = block_inner_product(size, G, memory);
  const float across = across_memory + (x.fresh ? 0 : block_inner_product(size, G, x.gathered));
  float across_velocity = 0, across_both = 0;
  if (p.momentum) {
    gather_backward(p, x, token, m, mask.p + last, GU, 1, g.p + last, pushed, gradient);
    across_velocity = block_inner_product(size, G, velocity);
    across_both = block_inner_product(size, GU, velocity);
  }
  if (!threadIdx.x) {
    g.f[n] += end * across;
    g.c[last] += end * across_velocity;
    g.p[last] += across_both;
    float to_weight = mask.f[n] * across - across_memory + mask.c[last] * across_velocity;
    for (int j = 0; j < n; j++) to_weight -= mask.c[last + j + 1] * inner[j];
    if (x.complete) gradient->weight[n - 1] += to_weight;
  }
  __syncthreads();
}

static inline __device__ void reads_backward(const memory_problem &p, const memory_chunk &x, const memory_tokens &token,
                                             const finish_memory &m, const float *memory, memory_tokens *gradient) {
  const memory_mask mask = m.mask, g = m.gradient;
  read_backward(
      p, x, m, memory, [&](int i) { return memory_share(token, mask, i); },
      [&](int i, float sum) {
        g.f[i + 1] += token.weight[i] * sum;
        gradient->weight[i] += (mask.f[i + 1] - 1) * sum;
      });
  if (!x.fresh)
    read_backward(
        p, x, m, x.gathered, [&](int i) { return gathered_share(token, mask, i); },
        [&](int i, float sum) {
          g.f[i + 1] += token.weight[i] * sum;
          gradient->weight[i] += mask.f[i + 1] * sum;
        });
  if (p.momentum)
    read_backward(
        p, x, m, memory + matrix_size(p), [&](int i) { return velocity_share(token, mask, i); },
        [&](int i, float sum) {
          g.c[(i + 1) * p.token_row] += token.weight[i] * sum;
          gradient->weight[i] += mask.c[(i + 1) * p.token_row] * sum;
        });
}

template <class T> static __global__ void __launch_bounds__(THREADS, 2) finish(const memory_problem p) {
  extern __shared__ int4 shared[];
  __shared__ memory_tokens token, gradient;
  memory_task t;
  memory_chunk x;
  const int64_t block = blockIdx.x;
  float *dweight = p.dweight ? p.dweight + block * p.V : NULL, *dbias = p.dbias ? p.dbias + block * p.V : NULL;
  float *doffset = p.dtoken_offset ? p.dtoken_offset + block * p.chunk : NULL;
  if (dweight) block_copy(p.V, NULL, dweight);
  if (dbias) block_copy(p.V, NULL, dbias);
  if (doffset) block_copy(p.chunk, NULL, doffset);
  if (!find_chunk(p, &t, &x)) return;
  const finish_memory m = finish_memory_of(p, arena_of(p, shared));
  const int R = p.R, V = p.V, n = x.n;
  const float *memory = matrices_at(p, p.memories, x), *G = matrices_at(p, p.end_gradient, x);
  load_tokens(p, x, &token);
  load_keys<T>(p, x, KEY, m.k);
  load_targets<T>(p, x, m.target);
  load_rows<float>(p, x, p.z, V, m.z, p.value_row);
  load_rows<float>(p, x, p.n, V, m.n, p.value_row);
  load_rows<float>(p, x, p.dn, V, m.dn, p.value_row);
  if (p.mapped) {
    load_rows<float>(p, x, p.dk, R, m.dk, p.key_row);
  } else {
    load_keys<T>(p, x, Q, m.q);
    load_rows<T>(p, x, p.output_gradient, V, m.o, p.value_row);
  }
  for (int i = threadIdx.x; i < CHUNK; i += THREADS) {
    gradient.rate[i] = p.mapped && i < n ? p.drate[x.row + i * p.heads] : 0;
    gradient.retain[i] = p.mapped && i < n ? p.dretain[x.row + i * p.heads] : 0;
    gradient.keep[i] = gradient.weight[i] = gradient.threshold[i] = 0;
  }
  for (int i = threadIdx.x; i < (n + 1) * p.token_row; i += THREADS) m.gradient.c[i] = m.gradient.p[i] = 0;
  for (int i = threadIdx.x; i <= n; i += THREADS) m.gradient.f[i] = 0;
  __syncthreads();
  find_mask(token, n, m.mask);
  inner_loss_backward<CHUNK>(t.loss, n, m.z, m.target, token.threshold, m.dn, m.dz, m.dtarget, gradient.threshold,
                             dweight, dbias);
  if (!p.mapped) {
    scores_backward(p, x, token, m, &gradient);
    reads_backward(p, x, token, m, memory, &gradient);
    store_rows(p, x, (T *)p.gradient[Q], p.K, m.dq, p.key_row, p.accumulate[Q]);
  }
  gates_backward(p, x, token, m, memory, G, &gradient);
  if (p.mapped) map_memory(p.map, R, V, memory, m.memory);
  block_sum_product(n, R, V, rows_of(m.dz, p.value_row), transposed(p.mapped ? m.memory : memory, V), 1, m.dk,
                    p.key_row);
  if (p.residual) block_matrix(n, V, [&](int i, int c) { m.dk[i * p.key_row + c] -= m.dtarget[i * p.value_row + c]; });
  mask_backward(p, x, token, m.mask, m.gradient, &gradient);

  store_rows(p, x, (T *)p.gradient[KEY], p.K, m.dk, p.key_row, p.accumulate[KEY]);
  store_rows(p, x, (T *)p.gradient[VALUE], V, m.dtarget, p.value_row, p.accumulate[VALUE]);
  store_gates(p, x, RATE, gradient.rate, NULL);
  store_gates(p, x, RETENTION, gradient.retain, token.retain);
  store_gates(p, x, MOMENTUM, gradient.keep, token.keep);
  store_gates(p, x, THRESHOLD, gradient.threshold, NULL);
  if (doffset)
    block_each(n, [&](int64_t i) {
      if (token.weight[i] > 0) doffset[x.phase + i] = gradient.weight[i];
    });
}

#endif
