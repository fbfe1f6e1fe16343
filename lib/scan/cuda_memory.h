/* What the kernels of the matrix memory share (memory.cu lists them): the operands, a chunk of one sequence and head, and the sums of
 * its gates. Matrices in shared memory have rows that lie on different banks (row_stride). */
#ifndef COMBA_SCAN_CUDA_MEMORY_H
#define COMBA_SCAN_CUDA_MEMORY_H

#include "scan/cuda_inner_loss.h"
#include "scan/cuda_memory_map.h"
#include "scan/cuda_memory_operands.h"

enum { Q, KEY, VALUE, RATE, RETENTION, MOMENTUM, THRESHOLD, TOKEN_OFFSET, NORM_WEIGHT, NORM_BIAS, MEMORY, BIAS };
enum { INITIAL_STATE = BIAS + 1, POSITION, CU_SEQLENS, INPUTS };
enum { CHUNK = 64 /* tokens of a chunk at most */, MASK = CHUNK + 1, THREADS = 256, WARPS = THREADS / 32 };
enum { WALK_THREADS = 512 }; /* of a block that walks: it is alone on its processor, and has to be quick */

struct memory_problem : memory_operands<INPUTS> {
  int64_t tokens, slots;                         /* B T; chunks of all sequences, a head: slots of the saved memories */
  int K, V, R;                                   /* R: rows of the memory, K and with a bias one more */
  int key_row, value_row, token_row, matrix_row; /* between rows of (n,R), (n,V), (n + 1,n + 1) and (R,V) */
  int64_t room;                                  /* floats of shared memory that a block takes at most */
  bool residual, momentum, mapped;
  memory_map map;
  cuda_inner_loss loss;
  /* Of all tokens: z and the rows n (B T,H,V), the gradient dn of these; of all chunks, a matrix, and with momentum two: what reading
   * leaves to the memory they start with, and the gradient of that they end with (slots,H,parts,R,V). */
  float *z, *n, *dn, *read_gradient, *end_gradient;
  float *gathered_gradient;               /* (N,H,R,V) of what was gathered before the first chunk, by reading */
  float *dk, *drate, *dretain;            /* through a map, by reading: (B T,H,R), (B T,H) */
  float *dweight, *dbias, *dtoken_offset; /* of each chunk and head: (slots,H,V), (slots,H,chunk) */
};

static inline __host__ __device__ int64_t matrix_size(const memory_problem &p) {
  return (int64_t)p.R * p.V;
}
static inline __host__ __device__ int matrices(const memory_problem &p) {
  return p.momentum ? 2 : 1;
}

static inline __device__ block_arena arena_of(const memory_problem &p, int4 *shared) {
  return {(float *)shared, p.scratch + blockIdx.x * p.scratch_size, p.room, 0, 0};
}

/* ---- Sequences and chunks -------------------------------------------------------------------------------------------- */

struct memory_task : memory_span {
  const float *initial, *given; /* states: the first, and the gradient of the last, or NULL */
  int64_t chunks, slot;         /* slot: of chunk 0 */
  cuda_inner_loss loss;
};

static inline __device__ int64_t first_token(const memory_problem &p, int64_t sequence) {
  const int32_t *cu_seqlens = (const int32_t *)p.input[CU_SEQLENS];
  return cu_seqlens ? cu_seqlens[sequence] : sequence * p.length;
}

/* As memory.c has it: no two sequences have a slot in common. */
static inline __device__ int64_t first_slot(const memory_problem &p, int64_t sequence) {
  return first_token(p, sequence) / p.chunk + 2 * sequence;
}

static inline __device__ memory_task task_of(const memory_problem &p, int64_t sequence, int64_t head) {
  const int64_t task = sequence * p.heads + head, state = task * (1 + matrices(p)) * matrix_size(p);
  memory_task t = {span_of(p, task, CU_SEQLENS, POSITION)};
  t.initial = p.input[INITIAL_STATE] ? (const float *)p.input[INITIAL_STATE] + state : NULL;
  t.given = p.final_state_gradient ? p.final_state_gradient + state : NULL;
  t.chunks = chunk_count(t, p.chunk);
  t.slot = first_slot(p, sequence);
  t.loss = p.loss;
  if (p.input[NORM_WEIGHT]) t.loss.weight = (const float *)p.input[NORM_WEIGHT] + head * p.V;
  if (p.input[NORM_BIAS]) t.loss.bias = (const float *)p.input[NORM_BIAS] + head * p.V;
  return t;
}

/* The sequence whose slots `slot` belongs to: the last one that begins at or before it. */
static inline __device__ int64_t sequence_of(const memory_problem &p, int64_t slot) {
  int64_t low = 0, high = p.sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (first_slot(p, middle) <= slot)
      low = middle;
    else
      high = middle;
  }
  return low;
}

struct memory_chunk {
  int64_t row, slot; /* of its first token and head in (B T,H); in (slots,H) */
  int n, phase;      /* tokens; how far into the chunk the first is */
  bool fresh;        /* nothing was gathered before */
  bool complete, last;
  const float *gathered; /* (R,V) what was, or NULL */
};

static inline __device__ memory_chunk chunk_of(const memory_problem &p, const memory_task &t, int64_t c) {
  const int64_t start = chunk_start(t, p.chunk, c);
  memory_chunk x;
  x.row = (t.first + start) * p.heads + t.head;
  x.slot = (t.slot + c) * p.heads + t.head;
  x.n = (int)(min(chunk_start(t, p.chunk, c + 1), t.length) - start);
  x.phase = c ? 0 : (int)t.phase;
  x.complete = x.phase + x.n == p.chunk;
  x.last = c == t.chunks - 1;
  x.fresh = !x.phase || !t.initial;
  x.gathered = x.fresh ? NULL : t.initial + matrix_size(p);
  return x;
}

/* Of a chunk, the memory that it starts with, and behind it the velocity. */
static inline __device__ float *matrices_at(const memory_problem &p, float *base, const memory_chunk &x) {
  return base + x.slot * matrices(p) * matrix_size(p);
}

/* ---- Tokens ---------------------------------------------------------------------------------------------------------- */

/* Numbers of each token; gradients of the same. */
typedef struct memory_tokens {
  float rate[CHUNK], retain[CHUNK], keep[CHUNK], weight[CHUNK], threshold[CHUNK];
} memory_tokens;

/* Without waiting for the block. */
static inline __device__ void load_tokens(const memory_problem &p, const memory_chunk &x, memory_tokens *token) {
  const float *rate = (const float *)p.input[RATE], *retention = (const float *)p.input[RETENTION];
  const float *momentum = (const float *)p.input[MOMENTUM], *threshold = (const float *)p.input[THRESHOLD];
  const float *offset = (const float *)p.input[TOKEN_OFFSET];
  for (int i = threadIdx.x; i < x.n; i += blockDim.x) {
    const int64_t at = x.row + i * p.heads;
    const int place = x.phase + i;
    token->rate[i] = rate[at];
    token->retain[i] = retention ? (retention[at] < -87 ? 0 : expf(retention[at])) : 1;
    token->keep[i] = momentum ? (momentum[at] < -87 ? 0 : expf(momentum[at])) : 0;
    token->weight[i] = offset ? fmaxf(1 / (float)(place + 1) + offset[place], 0) : 1;
    token->threshold[i] = threshold ? threshold[at] : 0;
  }
}

/* to (n,width), rows `stride` apart, = from (B T,H,width) at the chunk, zero without it; without waiting for the block. */
template <class T>
static __device__ inline void load_rows(const memory_problem &p, const memory_chunk &x, const void *from, int width,
                                        float *to, int stride) {
  const T *first = (const T *)from + x.row * width;
  const int64_t step = p.heads * width;
  start_load(x.n, width, to, stride, [=](int i, int c) { return from ? load_constant(first + i * step + c) : 0; });
}

/* Queries or keys (n,R), with a 1 where there is a bias. */
template <class T>
static __device__ inline void load_keys(const memory_problem &p, const memory_chunk &x, int input, float *to) {
  load_rows<T>(p, x, p.input[input], p.K, to, p.key_row);
  for (int i = threadIdx.x; p.R > p.K && i < x.n; i += blockDim.x) to[i * p.key_row + p.K] = 1;
}

template <class T>
static __device__ inline void load_targets(const memory_problem &p, const memory_chunk &x, float *to) {
  const T *v = (const T *)p.input[VALUE] + x.row * p.V, *k = (const T *)p.input[KEY] + x.row * p.V;
  const int64_t step = p.heads * p.V;
  const bool residual = p.residual;
  start_load(x.n, p.V, to, p.value_row, [=](int i, int c) {
    const int64_t at = i * step + c;
    return load_constant(v + at) - (residual ? load_constant(k + at) : 0);
  });
}

/* to (B T,H,width) at the chunk = or += from (n,width) */
template <class T>
static __device__ inline void store_rows(const memory_problem &p, const memory_chunk &x, T *to, int width,
                                         const float *from, int stride, bool accumulate) {
  if (!to) return;
  block_matrix(x.n, width,
               [&](int i, int c) { put(to + (x.row + i * p.heads) * width + c, from[i * stride + c], accumulate); });
}

static inline __device__ void store_gates(const memory_problem &p, const memory_chunk &x, int input, const float *from,
                                          const float *factor) {
  float *to = (float *)p.gradient[input];
  if (!to) return;
  block_each(
      x.n, [&](int64_t i) { put(to + x.row + i * p.heads, from[i] * (factor ? factor[i] : 1), p.accumulate[input]); });
}

/* ---- Sums of gates --------------------------------------------------------------------------------------------------- */

/* Row i is what token i sees of the memory before the chunk (f), the velocity (column 0 of c and p) and the tokens up to it; rows and
 * columns count from 1. */
typedef struct memory_mask {
  float *f, *c, *p;
  int row;
} memory_mask;

static inline __host__ __device__ memory_mask take_mask(const memory_problem &p, block_arena *arena) {
  memory_mask m = {arena->take(p.chunk + 1), NULL, NULL, p.token_row};
  m.c = arena->take((p.chunk + 1) * p.token_row);
  m.p = arena->take((p.chunk + 1) * p.token_row);
  return m;
}

/* visit(i, j, f, c, p) for rows 1 to n of column j, a thread each. */
template <class F> static __device__ inline void each_sum(const memory_tokens &token, int n, F visit) {
  for (int j = threadIdx.x; j <= n; j += blockDim.x) {
    float c = 0, p = j == 0, f = 1;
    for (int i = 1; i <= n; i++) {
      const float retain = token.retain[i - 1];
      p = j == i ? 1 : token.keep[i - 1] * p;
      c = j < i ? retain * c + p : (float)(j == i);
      f *= retain;
      visit(i, j, f, c, p);
    }
  }
}

static inline __device__ void find_mask(const memory_tokens &token, int n, const memory_mask &m) {
  each_sum(token, n, [&](int i, int j, float f, float c, float p) {
    m.c[i * m.row + j] = c;
    m.p[i * m.row + j] = p;
    if (j) return;
    m.f[i] = f;
    if (i > 1) return;
    m.f[0] = m.p[0] = 1;
    m.c[0] = 0;
  });
  for (int j = threadIdx.x + 1; j <= n; j += blockDim.x) m.c[j] = m.p[j] = 0;
  __syncthreads();
}

/* The chunk's end: E = f (memory + gathered) + c velocity - sum_j to_memory_j k_j n_j^T / end, of which the next memory has the share
 * `end`, and velocity' = p velocity - sum_j to_velocity_j k_j n_j^T. */
typedef struct memory_end {
  float f, c, p, end;
  float to_memory[CHUNK], to_velocity[CHUNK];
} memory_end;

/* Column j of each_sum, of which only the last row counts, a thread each; without waiting for the block. */
static inline __device__ void find_end(const memory_problem &p, const memory_chunk &x, const memory_tokens &token,
                                       memory_end *to) {
  const float end = x.complete ? token.weight[x.n - 1] : 1;
  const bool gated = p.momentum || p.input[RETENTION]; /* else nothing is ever forgotten */
  for (int j = threadIdx.x; j <= x.n; j += blockDim.x) {
    float c = j > 0, of_velocity = gated || j == x.n, f = 1;
    for (int i = j + 1; gated && i <= x.n; i++) {
      const float retain = token.retain[i - 1];
      of_velocity *= token.keep[i - 1];
      c = retain * c + of_velocity;
      f *= retain;
    }
    if (j) {
      to->to_memory[j - 1] = end * c * token.rate[j - 1];
      to->to_velocity[j - 1] = of_velocity * token.rate[j - 1];
    } else {
      to->f = f;
      to->c = c;
      to->p = of_velocity;
      to->end = end;
    }
  }
}

/* What token i reads of the memory before the chunk, of what was gathered, of the velocity. */
static inline __device__ float memory_share(const memory_tokens &token, const memory_mask &m, int i) {
  return token.weight[i] * m.f[i + 1] + (1 - token.weight[i]);
}
static inline __device__ float gathered_share(const memory_tokens &token, const memory_mask &m, int i) {
  return token.weight[i] * m.f[i + 1];
}
static inline __device__ float velocity_share(const memory_tokens &token, const memory_mask &m, int i) {
  return token.weight[i] * m.c[(i + 1) * m.row];
}

/* scores (n,n) = w_i c_ij rate_j <q_i, k_j>, zero above the diagonal */
static inline __device__ float score_share(const memory_tokens &token, const memory_mask &m, int i, int j) {
  return j <= i ? token.weight[i] * m.c[(i + 1) * m.row + j + 1] * token.rate[j] : 0;
}

#endif
