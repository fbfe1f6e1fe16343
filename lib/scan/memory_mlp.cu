/* The two-layer memory on a GPU: a cluster of blocks to each sequence and head, which walks its chunks in order, chunk by chunk whatever
 * the mode; the blocks share out the hidden channels (cuda_memory_mlp.h). What is saved for backward, the memory before every GROUP chunks,
 * is laid out as on the CPU. */
#include "scan/cuda_memory_mlp.h"
#include "scan/cuda_memory_operands.h"

enum { Q, KEY, VALUE, RATE, RETENTION, THRESHOLD, TOKEN_OFFSET, NORM_WEIGHT, NORM_BIAS, W1, B1, W2, B2 };
enum { INITIAL_STATE = B2 + 1, POSITION, CU_SEQLENS, INPUTS };

/* ---- The problem ----------------------------------------------------------------------------------------------------- */

struct mlp_problem : memory_operands<INPUTS> {
  int64_t F, M, P, state; /* M: all hidden channels; state: numbers of one */
  int64_t room;           /* floats of shared memory that a block takes at most */
  int slices;             /* blocks of a cluster */
  bool normalize;
  memory_map map;
  cuda_inner_loss loss;
};

/* Blocks that share out M hidden channels: more of them where there are few sequences and heads. */
static int slices_of(const comba_memory_mlp_attributes *attributes, int64_t M, int64_t tasks) {
  int slices = MOST_SLICES;
  if (attributes->map != COMBA_MEMORY_LINEAR || !comba_cuda_clusters()) return 1; /* maps go over all of a matrix */
  while (slices > 2 && tasks * slices > 120) slices /= 2; /* of clusters of eight an H100 has room for 15 at once */
  while (slices > 1 && (M % slices || M / slices < LEAST_SLICE)) slices /= 2;
  return slices;
}

static int64_t mlp_size(int64_t F, int64_t M) {
  return 2 * F * M + M + F;
}

static __host__ __device__ block_arena lay_out(const mlp_problem &p, cuda_mlp_chunk *s, block_arena arena,
                                               bool backward) {
  s->F = (int)p.F;
  s->M = (int)p.M / p.slices;
  s->slices = p.slices;
  arena.room = p.room;
  lay_out_mlp(s, &arena, p.chunk, p.map.kind != COMBA_MEMORY_LINEAR, p.normalize, backward);
  return arena;
}

static mlp_problem problem_of(const comba_shape *shapes, const comba_memory_mlp_attributes *attributes) {
  const comba_shape *q = &shapes[Q];
  mlp_problem p = {};
  p.sequences = shapes[CU_SEQLENS].rank ? shapes[CU_SEQLENS].size[0] - 1 : q->size[0];
  p.length = q->size[1];
  p.heads = q->size[2];
  p.F = q->size[3];
  p.M = shapes[W1].size[2];
  p.P = mlp_size(p.F, p.M);
  p.chunk = attributes->chunk ? attributes->chunk : 16;
  p.state = 2 * p.P + (shapes[RETENTION].rank ? 1 : 0);
  p.normalize = attributes->normalize;
  p.map.kind = attributes->map;
  p.map.exponent = attributes->map_exponent != 0 ? attributes->map_exponent : 4;
  p.map.total = attributes->map_total;
  p.loss = cuda_inner_loss_of(&attributes->loss, p.F);
  p.loss.stride = row_stride(p.F);
  p.parameters = p.P + 2 * p.F + p.chunk;
  p.slices = slices_of(attributes, p.M, p.sequences * p.heads);
  p.room = (comba_cuda_shared_bytes() - 12 * 1024 /* static */) / (int64_t)sizeof(float);
  return p;
}

static comba_status infer(comba_signature *s) {
  const mlp_problem p = problem_of(s->input, (const comba_memory_mlp_attributes *)s->attributes);
  const int64_t tasks = p.sequences * p.heads;
  cuda_mlp_chunk chunk;
  s->forward_workspace = tasks * p.slices * lay_out(p, &chunk, {}, false).global_used;
  s->backward_workspace = tasks * (p.slices * lay_out(p, &chunk, {}, true).global_used + p.parameters);
  return COMBA_OK;
}

static mlp_problem operands_of(const comba_call *call) {
  comba_shape shapes[INPUTS];
  for (int i = 0; i < INPUTS; i++) shapes[i] = call->input[i].shape;
  mlp_problem p = problem_of(shapes, (const comba_memory_mlp_attributes *)call->attributes);
  take_operands(call, &p);
  return p;
}

/* ---- Tasks ----------------------------------------------------------------------------------------------------------- */

struct mlp_task : memory_span {
  int64_t task;
  const float *initial; /* state, or NULL */
  float *memories;      /* of group 0, those of the others memory_stride apart; or NULL */
  int64_t memory_stride;
};

static __device__ mlp_task task_of(const mlp_problem &p) {
  const int64_t task = blockIdx.x / p.slices;
  mlp_task t = {span_of(p, task, CU_SEQLENS, POSITION)};
  t.task = task;
  t.initial = p.input[INITIAL_STATE] ? (const float *)p.input[INITIAL_STATE] + task * p.state : NULL;
  t.memory_stride = p.heads * p.P;
  const int64_t slot = (t.first + t.sequence * p.chunk) / (GROUP * p.chunk) + t.sequence; /* as memory_mlp.c has it */
  t.memories = p.memories ? p.memories + slot * t.memory_stride + t.head * p.P : NULL;
  return t;
}

/* Number i of the learned memory, which is four parameters. */
static __device__ float learned(const mlp_problem &p, const mlp_task &t, int64_t i) {
  const int64_t matrix = p.F * p.M, size[] = {matrix, p.M, matrix, p.F};
  int part = 0;
  while (i >= size[part]) i -= size[part++];
  return ((const float *)p.input[W1 + part])[t.head * size[part] + i];
}

static __device__ void begin(const mlp_problem &p, const mlp_task &t, bool backward, int4 *shared, mlp_tokens *token,
                             cuda_mlp_chunk *s) {
  const float *weight = (const float *)p.input[NORM_WEIGHT], *bias = (const float *)p.input[NORM_BIAS];
  *s = {};
  s->loss.loss = p.loss;
  lay_out(p, s, {(float *)shared, p.scratch + blockIdx.x * p.scratch_size}, backward);
  s->rank = blockIdx.x % p.slices;
  s->retention = p.input[RETENTION];
  s->map = p.map;
  s->token = token;
  if (weight) s->loss.loss.weight = weight + t.head * p.F;
  if (bias) s->loss.loss.bias = bias + t.head * p.F;
  if (p.normalize) s->loss.weight = s->loss.loss.weight, s->loss.bias = s->loss.loss.bias;
}

/* This block's part of a whole memory, zeros without it; what no number of it belongs to is zero. */
static __device__ void load_part(const cuda_mlp_chunk &s, const float *whole, float *part) {
  block_copy(s.P, NULL, part);
  if (whole) each_number(s, [&](int64_t at, int64_t i) { part[at] = whole[i]; });
}
static __device__ void store_part(const cuda_mlp_chunk &s, const float *part, float *whole) {
  each_number(s, [&](int64_t at, int64_t i) { whole[i] = part[at]; });
}

static __device__ void load_gathered(const mlp_problem &p, const mlp_task &t, cuda_mlp_chunk *s) {
  load_part(*s, t.initial ? t.initial + p.P : NULL, s->gathered);
  s->kept = s->retention && t.initial ? 1 + t.initial[2 * p.P] : 1;
}

/* The next tokens, from `start`, that lie in one chunk. */
template <class T>
static __device__ __noinline__ void load_chunk(const mlp_problem &p, const mlp_task &t, int64_t start,
                                               cuda_mlp_chunk *s) {
  const float *rate = (const float *)p.input[RATE], *retention = (const float *)p.input[RETENTION];
  const float *threshold = (const float *)p.input[THRESHOLD], *offset = (const float *)p.input[TOKEN_OFFSET];
  const T *q = (const T *)p.input[Q], *k = (const T *)p.input[KEY], *v = (const T *)p.input[VALUE];
  const int64_t first = (t.first + start) * p.heads + t.head, heads = p.heads, F = p.F;
  mlp_tokens *token = s->token;
  s->start = start;
  s->phase = (int)((t.phase + start) % p.chunk);
  s->n = (int)min(p.chunk - s->phase, t.length - start);
  s->complete = s->phase + s->n == p.chunk;
  if (!s->phase) s->kept = 1;
  const int n = s->n, narrow = s->narrow;
  for (int i = threadIdx.x; i < n; i += THREADS) {
    const int at = s->phase + i;
    const float g = retention ? retention[first + i * heads] : 0;
    token->place[i] = offset ? fmaxf(1 / (float)(at + 1) + offset[at], 0) : 1;
    token->own[i] = rate[first + i * heads];
    token->threshold[i] = threshold ? threshold[first + i * heads] : 0;
    token->along[i] = g < -87 ? 0 : expf(g);
  }
  const int64_t at = first * F, step = heads * F;
  start_load(n, (int)F, s->x, narrow, [=](int i, int c) { return load_constant(k + at + i * step + c); });
  start_load(n, (int)F, s->x + n * narrow, narrow, [=](int i, int c) { return load_constant(q + at + i * step + c); });
  start_load(n, (int)F, s->target, narrow,
             [=](int i, int c) { return load_constant(v + at + i * step + c) - load_constant(k + at + i * step + c); });
  __syncthreads();
  block_each(n + 1, [&](int64_t j) { /* what is left of token j, and in the last column of the start, at each token */
                                     float left = 1;
                                     for (int i = 0; i < n; i++) {
                                       if (j == n || i > j) left *= token->along[i];
                                       if (j < n) s->decay[i * s->square + j] = i < j ? 0 : left;
                                       if (j < n) continue;
                                       token->lag[i] = left;
                                       token->keep[i] = s->kept * left;
                                     }
  });
}

/* ---- Forward --------------------------------------------------------------------------------------------------------- */

template <class T> static __global__ void __launch_bounds__(THREADS) walk(const mlp_problem p) {
  extern __shared__ int4 shared[];
  __shared__ mlp_tokens token;
  const mlp_task t = task_of(p);
  const int64_t P = p.P, F = p.F, end = t.phase + t.length;
  cuda_mlp_chunk s;
  begin(p, t, false, shared, &token, &s);
  block_copy(s.P, NULL, s.A);
  each_number(s, [&](int64_t at, int64_t i) { s.A[at] = learned(p, t, i) + (t.initial ? t.initial[i] : 0); });
  load_gathered(p, t, &s);
  for (int64_t start = 0; start < t.length; start += s.n) {
    const int64_t number = (t.phase + start) / p.chunk;
    load_chunk<T>(p, t, start, &s);
    map_layers(&s);
    if (t.memories && number % GROUP == 0) store_part(s, s.A, t.memories + number / GROUP * t.memory_stride);
    find_gradients(&s);
    read_memory(&s, true);
    T *o = (T *)p.o + ((t.first + start) * p.heads + t.head) * F;
    for (int i = s.rank; i < s.n; i += s.slices) /* each block stores some of the rows, which all have */
      for (int64_t c = threadIdx.x; c < F; c += THREADS) store(o + i * p.heads * F + c, s.o[i * s.narrow + c]);
    write_memory(&s);
  }
  /* a memory that no chunk's end has changed stays as it was given, bit by bit */
  float *final_state = p.final_state + t.task * p.state;
  const bool inside = end % p.chunk, given = end < p.chunk;
  each_number(s, [&](int64_t at, int64_t i) {
    final_state[i] = given ? (t.initial ? t.initial[i] : 0) : s.A[at] - learned(p, t, i);
    final_state[P + i] = inside ? s.gathered[at] : 0;
  });
  if (s.retention && !s.rank && !threadIdx.x) final_state[2 * P] = inside ? s.kept - 1 : 0;
  publish(s); /* what is in shared memory stays until all have read it */
}

template <class K> static void launch(K kernel, mlp_problem p, const block_arena &used, const char *what) {
  const int bytes = (int)(used.shared_used * (int64_t)sizeof(float));
  const unsigned blocks = (unsigned)(p.sequences * p.heads * p.slices);
  p.scratch_size = used.global_used;
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
  comba_cuda_launch_clusters(what, kernel, blocks, THREADS, bytes, (unsigned)p.slices, p);
}

template <class T> static void forward(const comba_call *call) {
  const mlp_problem p = operands_of(call);
  cuda_mlp_chunk chunk;
  launch(walk<T>, p, lay_out(p, &chunk, {}, false), "memory of two layers");
}

/* ---- Backward -------------------------------------------------------------------------------------------------------- */

/* dg of the chunk's tokens, in parts: the paths that pass each gate (chunk_gate_gradient in scalar.h). */
static __device__ void find_retention(const cuda_mlp_chunk &s) {
  mlp_tokens *token = s.token;
  block_each(s.n, [&](int64_t i) {
    float sum = s.across + token->between[i];
    for (int j = 0; j < s.n; j++) sum += j < i ? token->to_state[j] : token->from_state[j];
    token->dretention[i] = sum;
  });
}

/* Adds up the parts of the chunk's gradients; each block stores those of some tokens. */
template <class T>
static __device__ void store_gradients(const mlp_problem &p, const mlp_task &t, cuda_mlp_chunk *s, float *doffset) {
  const int n = s->n, narrow = s->narrow, fours = (s->F + 3) / 4, rows = 2 * n * fours;
  const mlp_tokens *token = s->token;
  const int64_t row = (t.first + s->start) * p.heads + t.head, heads = p.heads, F = p.F;
  float *parts = next_parts(s), *numbers = parts + 2 * n * narrow; /* (2n,F) of keys and queries, (n,4) */
  if (s->retention) find_retention(*s);
  for (int i = threadIdx.x; i < n; i += THREADS)
    *(float4 *)(numbers + 4 * i) =
        make_float4(token->down[i], token->dplace[i], s->retention ? token->dretention[i] : 0, 0);
  block_matrix(2 * n, s->F, [&](int i, int c) { parts[i * narrow + c] = s->dx[i * narrow + c]; });
  publish(*s);
  for (int x = threadIdx.x; x < rows; x += THREADS) {
    const int i = x / fours, c = x % fours * 4, input = i < n ? KEY : Q;
    T *to = (T *)p.gradient[input];
    if (i % n % s->slices != s->rank || !to) continue;
    const float4 sum = sum_parts(*s, parts + i * narrow + c);
    const float four[4] = {sum.x, sum.y, sum.z, sum.w};
    to += (row + i % n * heads) * F + c;
    for (int j = 0; j < 4 && c + j < s->F; j++) put(to + j, four[j], p.accumulate[input]);
  }
  T *to_value = (T *)p.gradient[VALUE];
  for (int i = s->rank; to_value && i < n; i += s->slices)
    for (int c = threadIdx.x; c < s->F; c += THREADS)
      put(to_value + (row + i * heads) * F + c, s->dtarget[i * narrow + c], p.accumulate[VALUE]);
  if (s->rank) return;
  const auto store_gate = [&](int input, int i, float value) {
    float *to = (float *)p.gradient[input];
    if (to) put(to + row + i * heads, value, p.accumulate[input]);
  };
  block_each(n, [&](int64_t i) {
    const float4 sum = sum_parts(*s, numbers + 4 * i);
    store_gate(RATE, (int)i, sum.x);
    store_gate(RETENTION, (int)i, sum.z);
    store_gate(THRESHOLD, (int)i, token->dthreshold[i]);
    if (p.input[TOKEN_OFFSET] && token->place[i] > 0) doffset[s->phase + i] += sum.y;
  });
}

template <class T> static __global__ void __launch_bounds__(THREADS) walk_back(const mlp_problem p) {
  extern __shared__ int4 shared[];
  __shared__ mlp_tokens token;
  const mlp_task t = task_of(p);
  const int64_t P = p.P, F = p.F, chunks = chunk_count(t, p.chunk);
  const bool inside = (t.phase + t.length) % p.chunk;
  const float *given = p.final_state_gradient ? p.final_state_gradient + t.task * p.state : NULL;
  const T *output = (const T *)p.output_gradient;
  float *parameters = p.parameter_gradients + t.task * p.parameters;
  float *norm_weight = parameters + P, *norm_bias = norm_weight + F, *offset = norm_bias + F;
  cuda_mlp_chunk s;
  begin(p, t, true, shared, &token, &s);
  if (!s.rank) block_copy(2 * F + p.chunk, NULL, norm_weight);
  load_gathered(p, t, &s);
  load_part(s, given, s.dA);
  load_part(s, given && inside ? given + P : NULL, s.dgathered);
  s.dkept = given && inside && s.retention && !s.rank ? given[2 * P] : 0;
  for (int64_t end = chunks, first; end > 0; end = first) {
    first = (end - 1) / GROUP * GROUP;
    load_part(s, t.memories + first / GROUP * t.memory_stride, s.memories);
    for (int64_t number = first; number < end - 1; number++) {
      s.A = s.memories + (number + 1 - first) * s.P;
      block_copy(s.P, s.A - s.P, s.A);
      load_chunk<T>(p, t, chunk_start(t, p.chunk, number), &s);
      map_layers(&s);
      find_gradients(&s);
      write_memory(&s);
    }
    for (int64_t number = end - 1; number >= first; number--) {
      if (!number) load_gathered(p, t, &s); /* the way forward has changed it */
      s.A = s.memories + (number - first) * s.P;
      load_chunk<T>(p, t, chunk_start(t, p.chunk, number), &s);
      map_layers(&s);
      const int64_t row = (t.first + s.start) * p.heads + t.head;
      const T *to_output = output ? output + row * F : NULL;
      start_load(s.n, s.F, s.dz2 + s.n * s.narrow, s.narrow,
                 [&](int i, int c) { return to_output ? load_constant(to_output + i * p.heads * F + c) : 0; });
      __syncthreads();
      chunk_backward(&s, s.rank ? NULL : norm_weight, s.rank ? NULL : norm_bias);
      store_gradients<T>(p, t, &s, offset);
    }
  }
  float *to_state = p.gradient[INITIAL_STATE] ? (float *)p.gradient[INITIAL_STATE] + t.task * p.state : NULL;
  const bool accumulate = p.accumulate[INITIAL_STATE];
  each_number(s, [&](int64_t at, int64_t i) {
    parameters[i] = s.dA[at] - (given ? given[i] : 0); /* a state is less the learned memory */
    if (!to_state) return;
    put(to_state + i, s.dA[at], accumulate);
    put(to_state + P + i, t.phase ? s.dgathered[at] : 0, accumulate);
  });
  float *const parts = next_parts(&s);
  if (!threadIdx.x) *(float4 *)parts = make_float4(s.dkept, 0, 0, 0);
  publish(s);
  if (to_state && s.retention && !s.rank && !threadIdx.x) {
    const float dkept = sum_parts(s, parts).x;
    put(to_state + 2 * P, t.phase ? dkept : 0, accumulate);
  }
  publish(s);
}

template <class T> static void backward(const comba_call *call) {
  mlp_problem p = operands_of(call);
  const int64_t matrix = p.F * p.M;
  cuda_mlp_chunk chunk;
  const block_arena used = lay_out(p, &chunk, {}, true);
  p.parameter_gradients = p.scratch + p.sequences * p.heads * p.slices * used.global_used;
  launch(walk_back<T>, p, used, "memory of two layers, backward");
  sum_parameter(p, W1, 0, matrix, false);
  sum_parameter(p, B1, matrix, p.M, false);
  sum_parameter(p, W2, matrix + p.M, matrix, false);
  sum_parameter(p, B2, 2 * matrix + p.M, p.F, false);
  sum_parameter(p, NORM_WEIGHT, p.P, p.F, false);
  sum_parameter(p, NORM_BIAS, p.P + p.F, p.F, false);
  sum_parameter(p, TOKEN_OFFSET, p.P + 2 * p.F, p.chunk, true);
}

COMBA_CUDA_ROW(memory_mlp, infer);
