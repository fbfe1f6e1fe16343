/* The two-layer memory on a GPU: a block of threads to each sequence and head, which walks its chunks in order, chunk by chunk whatever
 * the mode. What is saved for backward, the memory before every GROUP chunks, is laid out as on the CPU. */
#include "scan/cuda_memory_mlp.h"
#include "scan/cuda_memory_operands.h"

enum { Q, KEY, VALUE, RATE, RETENTION, THRESHOLD, TOKEN_OFFSET, NORM_WEIGHT, NORM_BIAS, W1, B1, W2, B2 };
enum { INITIAL_STATE = B2 + 1, POSITION, CU_SEQLENS, INPUTS };
enum { THREADS = 256 };

/* ---- The problem ----------------------------------------------------------------------------------------------------- */

struct mlp_problem : memory_operands<INPUTS> {
  int64_t F, M, P, state; /* state: numbers of one */
  bool normalize;
  memory_map map;
  cuda_inner_loss loss;
};

static mlp_problem problem_of(const comba_shape *shapes, const comba_memory_mlp_attributes *attributes, bool backward) {
  const comba_shape *q = &shapes[Q];
  cuda_mlp_chunk s;
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
  p.scratch_size =
      lay_out_mlp(&s, NULL, p.F, p.M, p.chunk, attributes->map != COMBA_MEMORY_LINEAR, p.normalize, backward);
  p.parameters = p.P + 2 * p.F + p.chunk;
  return p;
}

static comba_status infer(comba_signature *s) {
  const comba_memory_mlp_attributes *attributes = (const comba_memory_mlp_attributes *)s->attributes;
  const mlp_problem p = problem_of(s->input, attributes, false), back = problem_of(s->input, attributes, true);
  s->forward_workspace = p.sequences * p.heads * p.scratch_size;
  s->backward_workspace = p.sequences * p.heads * (back.scratch_size + back.parameters);
  return COMBA_OK;
}

static mlp_problem operands_of(const comba_call *call, bool backward) {
  comba_shape shapes[INPUTS];
  for (int i = 0; i < INPUTS; i++) shapes[i] = call->input[i].shape;
  mlp_problem p = problem_of(shapes, (const comba_memory_mlp_attributes *)call->attributes, backward);
  take_operands(call, &p);
  return p;
}

/* ---- Tasks ----------------------------------------------------------------------------------------------------------- */

struct mlp_task : memory_span {
  const float *initial; /* state, or NULL */
  float *memories;      /* of group 0, those of the others memory_stride apart; or NULL */
  int64_t memory_stride;
};

static __device__ mlp_task task_of(const mlp_problem &p) {
  mlp_task t = {span_of(p, blockIdx.x, CU_SEQLENS, POSITION)};
  t.initial = p.input[INITIAL_STATE] ? (const float *)p.input[INITIAL_STATE] + blockIdx.x * p.state : NULL;
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

static __device__ void begin(const mlp_problem &p, const mlp_task &t, bool backward, mlp_tokens *token,
                             cuda_mlp_chunk *s) {
  const float *weight = (const float *)p.input[NORM_WEIGHT], *bias = (const float *)p.input[NORM_BIAS];
  *s = {};
  s->loss.loss = p.loss;
  lay_out_mlp(s, p.scratch + blockIdx.x * p.scratch_size, p.F, p.M, p.chunk, p.map.kind != COMBA_MEMORY_LINEAR,
              p.normalize, backward);
  s->retention = p.input[RETENTION];
  s->map = p.map;
  s->token = token;
  if (weight) s->loss.loss.weight = weight + t.head * p.F;
  if (bias) s->loss.loss.bias = bias + t.head * p.F;
  if (p.normalize) s->loss.weight = s->loss.loss.weight, s->loss.bias = s->loss.loss.bias;
}

static __device__ void load_gathered(const mlp_task &t, cuda_mlp_chunk *s) {
  block_copy(s->P, t.initial ? t.initial + s->P : NULL, s->gathered);
  s->kept = s->retention && t.initial ? 1 + t.initial[2 * s->P] : 1;
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
  s->phase = (t.phase + start) % p.chunk;
  s->n = min(p.chunk - s->phase, t.length - start);
  s->complete = s->phase + s->n == p.chunk;
  if (!s->phase) s->kept = 1;
  const int64_t n = s->n;
  const auto retained = [&](int64_t i) {
    const float g = retention ? retention[first + i * heads] : 0;
    return g < -87 ? 0 : expf(g);
  };
  block_each(n, [&](int64_t i) {
    const int64_t at = s->phase + i;
    token->place[i] = offset ? fmaxf(1 / (float)(at + 1) + offset[at], 0) : 1;
    token->own[i] = rate[first + i * heads];
    token->threshold[i] = threshold ? threshold[first + i * heads] : 0;
  });
  block_each(n + 1, [&](int64_t j) { /* what is left of token j, and in the last column of the start, at each token */
                                     float left = 1;
                                     for (int64_t i = 0; i < n; i++) {
                                       if (j == n || i > j) left *= retained(i);
                                       if (j < n) s->decay[i * n + j] = i < j ? 0 : left;
                                       if (j < n) continue;
                                       token->lag[i] = left;
                                       token->keep[i] = s->kept * left;
                                     }
  });
  block_each(n * F, [&](int64_t i) {
    const int64_t at = (first + i / F * heads) * F + i % F;
    s->x[i] = load(k + at);
    s->x[n * F + i] = load(q + at);
    s->target[i] = load(v + at) - s->x[i];
  });
}

/* ---- Forward --------------------------------------------------------------------------------------------------------- */

template <class T> static __global__ void __launch_bounds__(THREADS) walk(const mlp_problem p) {
  __shared__ mlp_tokens token;
  const mlp_task t = task_of(p);
  const int64_t P = p.P, F = p.F, end = t.phase + t.length;
  cuda_mlp_chunk s;
  begin(p, t, false, &token, &s);
  block_each(P, [&](int64_t i) { s.A[i] = learned(p, t, i) + (t.initial ? t.initial[i] : 0); });
  load_gathered(t, &s);
  for (int64_t start = 0; start < t.length; start += s.n) {
    const int64_t number = (t.phase + start) / p.chunk;
    load_chunk<T>(p, t, start, &s);
    map_layers(&s);
    if (t.memories && number % GROUP == 0) block_copy(P, s.A, t.memories + number / GROUP * t.memory_stride);
    find_gradients(s);
    read_memory(s);
    T *o = (T *)p.o + ((t.first + start) * p.heads + t.head) * F;
    block_each(s.n * F, [&](int64_t i) { store(o + i / F * p.heads * F + i % F, s.o[i]); });
    write_memory(&s);
  }
  /* a memory that no chunk's end has changed stays as it was given, bit by bit */
  float *final_state = p.final_state + blockIdx.x * p.state;
  const bool inside = end % p.chunk, given = end < p.chunk;
  block_each(P, [&](int64_t i) {
    final_state[i] = given ? (t.initial ? t.initial[i] : 0) : s.A[i] - learned(p, t, i);
    final_state[P + i] = inside ? s.gathered[i] : 0;
  });
  if (s.retention && !threadIdx.x) final_state[2 * P] = inside ? s.kept - 1 : 0;
}

template <class T> static void forward(const comba_call *call) {
  const mlp_problem p = operands_of(call, false);
  walk<T><<<(unsigned)(p.sequences * p.heads), THREADS, 0, comba_cuda_stream()>>>(p);
  comba_cuda_note(cudaGetLastError(), "memory of two layers");
}

/* ---- Backward -------------------------------------------------------------------------------------------------------- */

/* dg of the chunk's tokens: the paths that pass each gate (chunk_gate_gradient in scalar.h). */
static __device__ void store_retention(const mlp_problem &p, const mlp_task &t, const cuda_mlp_chunk &s) {
  float *to = (float *)p.gradient[RETENTION];
  const mlp_tokens *token = s.token;
  if (!to) return;
  to += (t.first + s.start) * p.heads + t.head;
  block_each(s.n, [&](int64_t i) {
    float sum = s.across + token->between[i];
    for (int64_t j = 0; j < s.n; j++) sum += j < i ? token->to_state[j] : token->from_state[j];
    put(to + i * p.heads, sum, p.accumulate[RETENTION]);
  });
}

template <class T> static __global__ void __launch_bounds__(THREADS) walk_back(const mlp_problem p) {
  __shared__ mlp_tokens token;
  const mlp_task t = task_of(p);
  const int64_t P = p.P, F = p.F, chunks = chunk_count(t, p.chunk);
  const bool inside = (t.phase + t.length) % p.chunk;
  const float *given = p.final_state_gradient ? p.final_state_gradient + blockIdx.x * p.state : NULL;
  const T *output = (const T *)p.output_gradient;
  float *parameters = p.parameter_gradients + blockIdx.x * p.parameters;
  float *norm_weight = parameters + P, *norm_bias = norm_weight + F, *offset = norm_bias + F;
  cuda_mlp_chunk s;
  begin(p, t, true, &token, &s);
  block_copy(p.parameters, NULL, parameters);
  load_gathered(t, &s);
  block_copy(P, given, s.dA);
  block_copy(P, given && inside ? given + P : NULL, s.dgathered);
  s.dkept = given && inside && s.retention ? given[2 * P] : 0;
  for (int64_t end = chunks, first; end > 0; end = first) {
    first = (end - 1) / GROUP * GROUP;
    block_copy(P, t.memories + first / GROUP * t.memory_stride, s.memories);
    for (int64_t number = first; number < end - 1; number++) {
      s.A = s.memories + (number + 1 - first) * P;
      block_copy(P, s.A - P, s.A);
      load_chunk<T>(p, t, chunk_start(t, p.chunk, number), &s);
      map_layers(&s);
      find_gradients(s);
      write_memory(&s);
    }
    for (int64_t number = end - 1; number >= first; number--) {
      if (!number) load_gathered(t, &s); /* the way forward has changed it */
      s.A = s.memories + (number - first) * P;
      load_chunk<T>(p, t, chunk_start(t, p.chunk, number), &s);
      map_layers(&s);
      block_each(s.n * F, [&](int64_t i) {
        const int64_t row = (t.first + s.start + i / F) * p.heads + t.head;
        s.dz2[s.n * F + i] = output ? load(output + row * F + i % F) : 0;
      });
      chunk_backward(&s, norm_weight, norm_bias);
      store_rows<T>(p, t, Q, s.start, s.n, F, s.dx + s.n * F, F);
      store_rows<T>(p, t, KEY, s.start, s.n, F, s.dx, F);
      store_rows<T>(p, t, VALUE, s.start, s.n, F, s.dtarget, F);
      store_rows<float>(p, t, RATE, s.start, s.n, 1, token.down, 1);
      store_rows<float>(p, t, THRESHOLD, s.start, s.n, 1, token.dthreshold, 1);
      store_retention(p, t, s);
      if (p.input[TOKEN_OFFSET])
        block_each(s.n, [&](int64_t i) {
          if (token.place[i] > 0) offset[s.phase + i] += token.dplace[i];
        });
    }
  }
  float *to_state = p.gradient[INITIAL_STATE] ? (float *)p.gradient[INITIAL_STATE] + blockIdx.x * p.state : NULL;
  const bool accumulate = p.accumulate[INITIAL_STATE];
  block_each(P, [&](int64_t i) {
    parameters[i] = s.dA[i] - (given ? given[i] : 0); /* a state is less the learned memory */
    if (!to_state) return;
    put(to_state + i, s.dA[i], accumulate);
    put(to_state + P + i, t.phase ? s.dgathered[i] : 0, accumulate);
  });
  if (to_state && s.retention && !threadIdx.x) put(to_state + 2 * P, t.phase ? s.dkept : 0, accumulate);
}

template <class T> static void backward(const comba_call *call) {
  const mlp_problem p = operands_of(call, true);
  const int64_t matrix = p.F * p.M;
  walk_back<T><<<(unsigned)(p.sequences * p.heads), THREADS, 0, comba_cuda_stream()>>>(p);
  comba_cuda_note(cudaGetLastError(), "memory of two layers, backward");
  sum_parameter(p, W1, 0, matrix, false);
  sum_parameter(p, B1, matrix, p.M, false);
  sum_parameter(p, W2, matrix + p.M, matrix, false);
  sum_parameter(p, B2, 2 * matrix + p.M, p.F, false);
  sum_parameter(p, NORM_WEIGHT, p.P, p.F, false);
  sum_parameter(p, NORM_BIAS, p.P + p.F, p.F, false);
  sum_parameter(p, TOKEN_OFFSET, p.P + 2 * p.F, p.chunk, true);
}

COMBA_CUDA_ROW(memory_mlp, infer);
