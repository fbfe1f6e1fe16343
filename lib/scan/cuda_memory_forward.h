/* The matrix memory forward: `walk`, a block a sequence and head, is all that has to go chunk by chunk (the rows n and the memories that
 * chunks start with); `read_linear` and `read_mapped`, a block a chunk, are what the tokens read then. */
#ifndef COMBA_SCAN_CUDA_MEMORY_FORWARD_H
#define COMBA_SCAN_CUDA_MEMORY_FORWARD_H

#include "scan/cuda_memory.h"

/* Number (r, c) of the learned first memory. */
static inline __device__ float learned(const memory_problem &p, const memory_task &t, int r, int c) {
  const float *memory = (const float *)p.input[MEMORY], *bias = (const float *)p.input[BIAS];
  if (r == p.K) return bias[t.head * p.V + c];
  return memory ? memory[(t.head * p.K + r) * p.V + c] : 0;
}

/* ---- Chunk by chunk -------------------------------------------------------------------------------------------------- */

struct walk_memory {
  float *A, *U, *memory; /* (R,V): as gates move it, the velocity, and the map of A, or A itself */
  float *k;              /* (n,R) */
  float *target, *z, *n, *pushed;
  block_arena used;
};

static inline __host__ __device__ walk_memory walk_memory_of(const memory_problem &p, block_arena arena) {
  const int64_t matrix = (int64_t)p.R * p.matrix_row, values = p.chunk * p.value_row;
  walk_memory m;
  m.A = arena.take(matrix);
  m.U = p.momentum ? arena.take(matrix) : NULL;
  m.memory = p.mapped ? arena.take(matrix) : m.A;
  m.k = arena.take(p.chunk * p.key_row);
  m.target = arena.take(values);
  m.z = arena.take(values);
  m.n = arena.take(values);
  m.pushed = p.momentum ? arena.take(values) : NULL;
  m.used = arena;
  return m;
}

/* Rows n to p.n; m.n and m.pushed become their shares in the chunk's end. */
static inline __device__ void share_gradients(const memory_problem &p, const memory_chunk &x, const memory_end &end,
                                              const walk_memory &m) {
  block_matrix(x.n, p.V, [&](int i, int c) {
    const int at = i * p.value_row + c;
    const float n = m.n[at];
    p.n[(x.row + i * p.heads) * p.V + c] = n;
    m.n[at] = end.to_memory[i] * n;
    if (p.momentum) m.pushed[at] = end.to_velocity[i] * n;
  });
}

template <class T> static __global__ void __launch_bounds__(WALK_THREADS) walk(const memory_problem p) {
  extern __shared__ int4 shared[];
  __shared__ memory_tokens token;
  __shared__ memory_end end;
  const memory_task t = task_of(p, blockIdx.x / p.heads, blockIdx.x % p.heads);
  const int R = p.R, V = p.V, row = p.matrix_row;
  const int64_t size = matrix_size(p), parts = 1 + matrices(p);
  float *final_state = p.final_state + blockIdx.x * parts * size;
  const walk_memory m = walk_memory_of(p, arena_of(p, shared));
  if (!t.length) {
    block_copy(parts * size, t.initial, final_state);
    return;
  }
  memory_chunk x = chunk_of(p, t, 0);
  float *saved = matrices_at(p, p.memories, x);
  block_matrix(R, V, [&](int r, int c) {
    const int at = r * V + c;
    m.A[r * row + c] = saved[at] = (t.initial ? t.initial[at] : 0) + learned(p, t, r, c);
    if (p.momentum) m.U[r * row + c] = saved[size + at] = t.initial ? t.initial[2 * size + at] : 0;
  });
  for (int64_t c = 0; c < t.chunks; c++) {
    x = chunk_of(p, t, c);
    load_tokens(p, x, &token);
    load_keys<T>(p, x, KEY, m.k);
    load_targets<T>(p, x, m.target);
    __syncthreads();
    find_end(p, x, token, &end);
    if (p.mapped) map_memory(p.map, R, V, m.A, m.memory);
    block_product(x.n, V, R, rows_of(m.k, p.key_row), rows_of(m.memory, row),
                  [&](int i, int j, float z) { m.z[i * p.value_row + j] = z; });
    inner_loss_forward(t.loss, x.n, m.z, m.target, token.threshold, m.n);
    share_gradients(p, x, end, m);
    saved = x.last ? NULL : saved + p.heads * matrices(p) * size;
    block_update(
        R, V, x.n, transposed(m.k, p.key_row), rows_of(m.n, p.value_row),
        [&](int i, int j) { return m.A[i * row + j]; },
        [&](int i, int j, float sum, float old) {
          const int at = i * V + j;
          const float start = old + (x.fresh ? 0 : x.gathered[at]);
          const float pushed = p.momentum ? end.end * end.c * m.U[i * row + j] : 0;
          const float moved = end.end * end.f * start + pushed - sum, next = moved + (1 - end.end) * old;
          if (x.complete)
            m.A[i * row + j] = next;
          else
            final_state[size + at] = moved - old;
          if (saved) saved[at] = next;
        });
    if (!p.momentum) continue;
    block_update(
        R, V, x.n, transposed(m.k, p.key_row), rows_of(m.pushed, p.value_row),
        [&](int i, int j) { return m.U[i * row + j]; },
        [&](int i, int j, float sum, float old) {
          const float next = m.U[i * row + j] = end.p * old - sum;
          if (saved) saved[size + i * V + j] = next;
        });
  }
  block_matrix(R, V, [&](int r, int c) {
    const int at = r * V + c;
    final_state[at] = m.A[r * row + c] - learned(p, t, r, c);
    if (x.complete) final_state[size + at] = 0;
    if (p.momentum) final_state[2 * size + at] = m.U[r * row + c];
  });
}

/* ---- Reading --------------------------------------------------------------------------------------------------------- */

/* The sequence and chunk of this block, one of (slots,H); false where the slot is not used. */
static inline __device__ bool find_chunk(const memory_problem &p, memory_task *t, memory_chunk *x) {
  const int64_t slot = blockIdx.x / p.heads;
  *t = task_of(p, sequence_of(p, slot), blockIdx.x % p.heads);
  if (slot - t->slot >= t->chunks) return false;
  *x = chunk_of(p, *t, slot - t->slot);
  return true;
}

struct read_memory {
  float *q, *k, *n, *o, *scores; /* linear */
  memory_mask mask;
  float *A, *memory, *partial; /* mapped: (R,V), (WARPS,V) */
  block_arena used;
};

static inline __host__ __device__ read_memory read_memory_of(const memory_problem &p, block_arena arena) {
  const int64_t keys = p.chunk * p.key_row, values = p.chunk * p.value_row;
  read_memory m = {};
  m.q = arena.take(keys);
  m.k = arena.take(keys);
  m.n = arena.take(values);
  if (p.mapped) {
    m.A = arena.take(p.R * p.matrix_row);
    m.memory = arena.take(p.R * p.matrix_row);
    m.partial = arena.take(WARPS * p.V);
  } else {
    m.o = arena.take(values);
    m.scores = arena.take(p.chunk * p.token_row);
    m.mask = take_mask(p, &arena);
  }
  m.used = arena;
  return m;
}

template <class T> static __global__ void __launch_bounds__(THREADS, 2) read_linear(const memory_problem p) {
  extern __shared__ int4 shared[];
  __shared__ memory_tokens token;
  memory_task t;
  memory_chunk x;
  if (!find_chunk(p, &t, &x)) return;
  const read_memory m = read_memory_of(p, arena_of(p, shared));
  const int V = p.V, R = p.R;
  const float *memory = matrices_at(p, p.memories, x);
  const block_factor q = rows_of(m.q, p.key_row);
  T *o = (T *)p.o;
  load_tokens(p, x, &token);
  load_keys<T>(p, x, Q, m.q);
  load_keys<T>(p, x, KEY, m.k);
  load_rows<float>(p, x, p.n, V, m.n, p.value_row);
  __syncthreads();
  find_mask(token, x.n, m.mask);
  block_product(x.n, x.n, R, q, transposed(m.k, p.key_row), [&](int i, int j, float score) {
    m.scores[i * p.token_row + j] = score_share(token, m.mask, i, j) * score;
  });
  block_product(x.n, V, R, q, rows_of(memory, V),
                [&](int i, int j, float sum) { m.o[i * p.value_row + j] = memory_share(token, m.mask, i) * sum; });
  if (!x.fresh)
    block_product(x.n, V, R, q, rows_of(x.gathered, V),
                  [&](int i, int j, float sum) { m.o[i * p.value_row + j] += gathered_share(token, m.mask, i) * sum; });
  if (p.momentum)
    block_product(x.n, V, R, q, rows_of(memory + matrix_size(p), V),
                  [&](int i, int j, float sum) { m.o[i * p.value_row + j] += velocity_share(token, m.mask, i) * sum; });
  block_product(x.n, V, x.n, rows_of(m.scores, p.token_row), rows_of(m.n, p.value_row), [&](int i, int j, float sum) {
    store(o + (x.row + i * p.heads) * V + j, m.o[i * p.value_row + j] - sum);
  });
}

/* A (R,V) = retain A - rate k n^T of token i */
static inline __device__ void take_step(const memory_problem &p, const memory_tokens &token, int i, const float *k,
                                        const float *n, float *A) {
  block_matrix(p.R, p.V, [&](int r, int c) {
    float *to = A + r * p.matrix_row + c;
    *to = token.retain[i] * *to - token.rate[i] * k[i * p.key_row + r] * n[i * p.value_row + c];
  });
}

/* use(c, sum over r of x_r matrix_rc); partial (WARPS,V) */
template <class F>
static __device__ inline void combine_rows(const memory_problem &p, const float *x, const float *matrix, float *partial,
                                           F use) {
  const int warp = threadIdx.x / 32, V = p.V;
  for (int c = threadIdx.x % 32; c < V; c += 32) {
    float sum = 0;
    for (int r = warp; r < p.R; r += WARPS) sum += x[r] * matrix[r * p.matrix_row + c];
    partial[warp * V + c] = sum;
  }
  __syncthreads();
  block_each(V, [&](int64_t c) {
    float sum = 0;
    for (int i = 0; i < WARPS; i++) sum += partial[i * V + c];
    use((int)c, sum);
  });
}

template <class T> static __global__ void __launch_bounds__(THREADS, 2) read_mapped(const memory_problem p) {
  extern __shared__ int4 shared[];
  __shared__ memory_tokens token;
  memory_task t;
  memory_chunk x;
  if (!find_chunk(p, &t, &x)) return;
  const read_memory m = read_memory_of(p, arena_of(p, shared));
  const float *memory = matrices_at(p, p.memories, x);
  T *o = (T *)p.o;
  load_tokens(p, x, &token);
  load_keys<T>(p, x, Q, m.q);
  load_keys<T>(p, x, KEY, m.k);
  load_rows<float>(p, x, p.n, p.V, m.n, p.value_row);
  block_matrix(p.R, p.V, [&](int r, int c) {
    m.A[r * p.matrix_row + c] = memory[r * p.V + c] + (x.fresh ? 0 : x.gathered[r * p.V + c]);
  });
  for (int i = 0; i < x.n; i++) {
    take_step(p, token, i, m.k, m.n, m.A);
    map_memory(p.map, p.R, p.V, m.A, m.memory);
    combine_rows(p, m.q + i * p.key_row, m.memory, m.partial,
                 [&](int c, float sum) { store(o + (x.row + i * p.heads) * p.V + c, sum); });
  }
}

#endif
