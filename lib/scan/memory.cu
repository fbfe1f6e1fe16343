/* The matrix memory on a GPU: a block of threads to each sequence and head, which walks its chunks in order (memory_scan.c). What is
 * saved for backward, the memory before every chunk, is laid out as on the CPU. */
#include "scan/cuda_memory.h"
#include "scan/cuda_memory_operands.h"

enum { Q, KEY, VALUE, RATE, RETENTION, MOMENTUM, THRESHOLD, TOKEN_OFFSET, NORM_WEIGHT, NORM_BIAS, MEMORY, BIAS };
enum { INITIAL_STATE = BIAS + 1, POSITION, CU_SEQLENS, INPUTS };
enum { THREADS = 256 };

/* ---- The problem ----------------------------------------------------------------------------------------------------- */

struct memory_problem : memory_operands<INPUTS> {
  int64_t K, V, rows, parts; /* rows: K, with a bias K + 1 */
  bool residual;
  memory_map map;
  cuda_inner_loss loss;
};

static memory_problem problem_of(const comba_shape *shapes, const comba_memory_attributes *attributes, bool backward) {
  const comba_shape *q = &shapes[Q], *v = &shapes[VALUE];
  cuda_memory_chunk x;
  cuda_memory_gradient g;
  memory_problem p = {};
  p.sequences = shapes[CU_SEQLENS].rank ? shapes[CU_SEQLENS].size[0] - 1 : q->size[0];
  p.length = q->size[1];
  p.heads = q->size[2];
  p.K = q->size[3];
  p.V = v->size[3];
  p.rows = p.K + (shapes[BIAS].rank ? 1 : 0);
  p.parts = shapes[MOMENTUM].rank ? 3 : 2;
  p.chunk = attributes->chunk ? attributes->chunk : 16;
  p.residual = attributes->residual;
  p.map.kind = attributes->map;
  p.map.exponent = attributes->map_exponent != 0 ? attributes->map_exponent : 4;
  p.map.total = attributes->map_total != 0 ? attributes->map_total : (double)p.V * sqrt((double)p.K);
  p.loss = cuda_inner_loss_of(&attributes->loss, p.V);
  p.scratch_size = lay_out_memory(&x, &g, NULL, p.chunk, p.rows, p.V, attributes->map != COMBA_MEMORY_LINEAR, backward);
  p.parameters = p.rows * p.V + 2 * p.V + p.chunk;
  return p;
}

static comba_status infer(comba_signature *s) {
  const comba_memory_attributes *attributes = (const comba_memory_attributes *)s->attributes;
  const memory_problem p = problem_of(s->input, attributes, false), back = problem_of(s->input, attributes, true);
  s->forward_workspace = p.sequences * p.heads * p.scratch_size;
  s->backward_workspace = p.sequences * p.heads * (back.scratch_size + back.parameters);
  return COMBA_OK;
}

static memory_problem operands_of(const comba_call *call, bool backward) {
  comba_shape shapes[INPUTS];
  for (int i = 0; i < INPUTS; i++) shapes[i] = call->input[i].shape;
  memory_problem p = problem_of(shapes, (const comba_memory_attributes *)call->attributes, backward);
  take_operands(call, &p);
  return p;
}

/* ---- Tasks ----------------------------------------------------------------------------------------------------------- */

struct memory_task : memory_span {
  int64_t size;    /* R V */
  int64_t state;   /* its place among the states */
  float *memories; /* of chunk 0, those of the others memory_stride apart; or NULL */
  int64_t memory_stride;
  bool mapped, momentum;
  cuda_inner_loss loss;
};

static __device__ memory_task task_of(const memory_problem &p) {
  memory_task t = {span_of(p, CU_SEQLENS, POSITION)};
  t.size = p.rows * p.V;
  t.state = blockIdx.x * p.parts * t.size;
  t.memory_stride = p.heads * (p.parts - 1) * t.size;
  t.memories =
      p.memories ? p.memories + (t.first / p.chunk + 2 * t.sequence) * t.memory_stride + t.head * (p.parts - 1) * t.size
                 : NULL;
  t.mapped = p.map.kind != COMBA_MEMORY_LINEAR;
  t.momentum = p.parts == 3;
  t.loss = p.loss;
  if (p.input[NORM_WEIGHT]) t.loss.weight = (const float *)p.input[NORM_WEIGHT] + t.head * p.V;
  if (p.input[NORM_BIAS]) t.loss.bias = (const float *)p.input[NORM_BIAS] + t.head * p.V;
  return t;
}

static __device__ bool is_complete(const memory_problem &p, const cuda_memory_chunk &x) {
  return x.phase + x.n == p.chunk;
}

static __device__ const float *initial_state(const memory_problem &p, const memory_task &t) {
  return p.input[INITIAL_STATE] ? (const float *)p.input[INITIAL_STATE] + t.state : NULL;
}

/* Number i of the learned first memory. */
static __device__ float learned(const memory_problem &p, const memory_task &t, int64_t i) {
  const float *memory = (const float *)p.input[MEMORY], *bias = (const float *)p.input[BIAS];
  const int64_t matrix = p.K * p.V;
  if (i >= matrix) return bias[t.head * p.V + i - matrix];
  return memory ? memory[t.head * matrix + i] : 0;
}

/* The tokens of chunk c, and the rows n_t at x->frozen. */
template <class T>
static __device__ void load_chunk(const memory_problem &p, const memory_task &t, int64_t c, cuda_memory_chunk *x) {
  const int64_t start = chunk_start(t, p.chunk, c), end = min(chunk_start(t, p.chunk, c + 1), t.length), R = p.rows,
                V = p.V;
  const float *rate = (const float *)p.input[RATE], *retention = (const float *)p.input[RETENTION];
  const float *momentum = (const float *)p.input[MOMENTUM], *threshold = (const float *)p.input[THRESHOLD];
  const float *offset = (const float *)p.input[TOKEN_OFFSET];
  const T *q = (const T *)p.input[Q], *k = (const T *)p.input[KEY], *v = (const T *)p.input[VALUE];
  const int64_t first = (t.first + start) * p.heads + t.head, heads = p.heads; /* rows of a head are `heads` apart */
  x->n = end - start;
  x->phase = c ? 0 : t.phase;
  x->R = R;
  x->V = V;
  x->fresh = !x->phase || !p.input[INITIAL_STATE];
  x->momentum = t.momentum;
  x->token_weight = offset;
  x->map_kind = p.map;
  memory_tokens *token = x->token;
  block_each(x->n, [&](int64_t i) {
    const int64_t at = first + i * heads, place = x->phase + i;
    token->rate[i] = rate[at];
    token->retain[i] = retention ? (retention[at] < -87 ? 0 : expf(retention[at])) : 1;
    token->keep[i] = momentum ? (momentum[at] < -87 ? 0 : expf(momentum[at])) : 0;
    token->weight[i] = offset ? fmaxf(1 / (float)(place + 1) + offset[place], 0) : 1;
    token->threshold[i] = threshold ? threshold[at] : 0;
  });
  block_each(x->n * R, [&](int64_t i) {
    const int64_t row = first + i / R * heads, channel = i % R;
    x->q[i] = channel < p.K ? load(q + row * p.K + channel) : 1;
    x->k[i] = channel < p.K ? load(k + row * p.K + channel) : 1;
  });
  block_each(x->n * V, [&](int64_t i) {
    x->target[i] = load(v + (first + i / V * heads) * V + i % V) - (p.residual ? x->k[i / V * R + i % V] : 0);
  });
  if (t.mapped) map_memory(p.map, R, V, x->frozen, x->map);
  block_product(x->n, V, R, 1, rows_of(x->k, R), rows_of(x->map, V), 0, x->z);
  inner_loss_forward(t.loss, x->n, x->z, x->target, token->threshold, x->gradient);
}

/* ---- Forward --------------------------------------------------------------------------------------------------------- */

template <class T> static __global__ void __launch_bounds__(THREADS) walk(const memory_problem p) {
  __shared__ memory_tokens token;
  const memory_task t = task_of(p);
  const int64_t size = t.size, V = p.V, chunks = chunk_count(t, p.chunk);
  const float *initial = initial_state(p, t);
  float *final_state = p.final_state + t.state;
  cuda_memory_chunk x;
  cuda_memory_gradient g;
  lay_out_memory(&x, &g, p.scratch + blockIdx.x * p.scratch_size, p.chunk, p.rows, V, t.mapped, false);
  x.token = &token;
  if (!t.length) {
    block_copy(p.parts * size, initial, final_state);
    return;
  }
  const bool inside = t.phase && initial; /* a chunk that has begun */
  block_each(size, [&](int64_t i) {
    x.frozen[i] = (initial ? initial[i] : 0) + learned(p, t, i);
    x.running[i] = x.frozen[i] + (inside ? initial[size + i] : 0);
    x.velocity[i] = t.momentum && initial ? initial[2 * size + i] : 0;
  });
  for (int64_t c = 0; c < chunks; c++) {
    load_chunk<T>(p, t, c, &x);
    if (t.memories) {
      float *saved = t.memories + c * t.memory_stride;
      block_copy(size, x.frozen, saved);
      if (t.momentum) block_copy(size, x.velocity, saved + size);
    }
    if (t.mapped)
      mapped_forward(x);
    else
      linear_forward(x);
    T *o = (T *)p.o + ((t.first + chunk_start(t, p.chunk, c)) * p.heads + t.head) * V;
    block_each(x.n * V, [&](int64_t i) { store(o + i / V * p.heads * V + i % V, x.o[i]); });
    if (!is_complete(p, x)) continue;
    const float weight = token.weight[x.n - 1];
    block_each(size, [&](int64_t i) {
      if (x.token_weight) x.running[i] = x.frozen[i] + weight * (x.running[i] - x.frozen[i]);
      x.frozen[i] = x.running[i];
    });
  }
  block_each(size, [&](int64_t i) {
    final_state[i] = x.frozen[i] - learned(p, t, i);
    final_state[size + i] = x.running[i] - x.frozen[i];
    if (t.momentum) final_state[2 * size + i] = x.velocity[i];
  });
}

template <class T> static void forward(const comba_call *call) {
  const memory_problem p = operands_of(call, false);
  walk<T><<<(unsigned)(p.sequences * p.heads), THREADS, 0, comba_cuda_stream()>>>(p);
  comba_cuda_note(cudaGetLastError(), "memory");
}

/* ---- Backward -------------------------------------------------------------------------------------------------------- */

/* factor_t from_t, factor NULL: 1, to the gradient of a gate. */
static __device__ void store_gates(const memory_problem &p, const memory_task &t, int input, int64_t start, int64_t n,
                                   const float *from, const float *factor) {
  float *to = (float *)p.gradient[input];
  if (!to) return;
  to += (t.first + start) * p.heads + t.head;
  block_each(n, [&](int64_t i) { put(to + i * p.heads, from[i] * (factor ? factor[i] : 1), p.accumulate[input]); });
}

/* Chunk c from the gradients of its end in g.running and g.velocity to those of its start; g.frozen is all that reaches the memory it
 * starts with, g.running of it what came through the tokens gathered before. parameters: those of this task. */
template <class T>
static __device__ void chunk_backward(const memory_problem &p, const memory_task &t, int64_t c,
                                      const cuda_memory_chunk &x, cuda_memory_gradient *g, float *parameters) {
  const int64_t start = chunk_start(t, p.chunk, c), R = x.R, V = x.V, n = x.n, size = R * V;
  const T *output = (const T *)p.output_gradient;
  float *norm_weight = parameters + size, *norm_bias = norm_weight + V, *token_offset = norm_bias + V;
  block_each(n * V, [&](int64_t i) {
    g->o[i] = output ? load(output + ((t.first + start + i / V) * p.heads + t.head) * V + i % V) : 0;
  });
  block_each(CHUNK, [&](int64_t i) {
    g->token->rate[i] = g->token->retain[i] = g->token->keep[i] = g->token->weight[i] = g->token->threshold[i] = 0;
  });
  g->committed = is_complete(p, x);
  g->end = g->committed && x.token_weight ? x.token->weight[n - 1] : 1;
  if (t.mapped)
    mapped_backward(x, *g);
  else
    linear_backward(x, *g);

  inner_loss_backward<CHUNK>(t.loss, n, x.z, x.target, x.token->threshold, g->gradient, g->dz, g->dtarget,
                             g->token->threshold, norm_weight, norm_bias);
  block_product(n, R, V, 1, rows_of(g->dz, V), transposed(x.map, V), 1, g->k);
  if (t.mapped) {
    block_product(R, V, n, 1, transposed(x.k, R), rows_of(g->dz, V), 0, x.read);
    map_backward(p.map, R, V, x.frozen, x.map, x.read);
    block_add(size, x.read, g->frozen);
  } else {
    block_product(R, V, n, 1, transposed(x.k, R), rows_of(g->dz, V), 1, g->frozen);
  }
  block_add(size, g->running, g->frozen);
  if (p.residual) block_each(n * V, [&](int64_t i) { g->k[i / V * R + i % V] -= g->dtarget[i]; });

  store_rows<T>(p, t, Q, start, n, p.K, g->q, R);
  store_rows<T>(p, t, KEY, start, n, p.K, g->k, R);
  store_rows<T>(p, t, VALUE, start, n, V, g->dtarget, V);
  store_gates(p, t, RATE, start, n, g->token->rate, NULL);
  store_gates(p, t, RETENTION, start, n, g->token->retain, x.token->retain);
  store_gates(p, t, MOMENTUM, start, n, g->token->keep, x.token->keep);
  store_gates(p, t, THRESHOLD, start, n, g->token->threshold, NULL);
  if (x.token_weight)
    block_each(n, [&](int64_t i) {
      if (x.token->weight[i] > 0) token_offset[x.phase + i] += g->token->weight[i];
    });
}

template <class T> static __global__ void __launch_bounds__(THREADS) walk_back(const memory_problem p) {
  __shared__ memory_tokens token, token_gradient;
  const memory_task t = task_of(p);
  const int64_t size = t.size, chunks = chunk_count(t, p.chunk);
  const float *initial = initial_state(p, t);
  const float *given = p.final_state_gradient ? p.final_state_gradient + t.state : NULL;
  float *parameters = p.parameter_gradients + blockIdx.x * p.parameters;
  float *to_state = p.gradient[INITIAL_STATE] ? (float *)p.gradient[INITIAL_STATE] + t.state : NULL;
  const bool accumulate = p.accumulate[INITIAL_STATE];
  cuda_memory_chunk x;
  cuda_memory_gradient g;
  lay_out_memory(&x, &g, p.scratch + blockIdx.x * p.scratch_size, p.chunk, p.rows, p.V, t.mapped, true);
  x.token = &token;
  g.token = &token_gradient;
  block_copy(p.parameters, NULL, parameters);
  if (!t.length) {
    if (to_state) block_each(p.parts * size, [&](int64_t i) { put(to_state + i, given ? given[i] : 0, accumulate); });
    return;
  }
  for (int64_t c = chunks - 1; c >= 0; c--) {
    const float *saved = t.memories + c * t.memory_stride;
    block_copy(size, saved, x.frozen);
    if (t.momentum) block_copy(size, saved + size, x.velocity);
    load_chunk<T>(p, t, c, &x);
    const bool complete = is_complete(p, x), last = c == chunks - 1;
    block_each(size, [&](int64_t i) {
      x.running[i] = x.frozen[i] + (x.fresh ? 0 : initial[size + i]);
      /* the state holds frozen - learned, running - frozen and velocity; where the chunk is complete, frozen is running */
      const float offset = given ? given[i] : 0, gathered = given ? given[size + i] : 0;
      if (last && t.momentum) g.velocity[i] = given ? given[2 * size + i] : 0;
      if (last)
        g.running[i] = complete ? offset : gathered;
      else
        g.running[i] = g.frozen[i];
      g.frozen[i] = last && !complete ? offset - gathered : 0;
    });
    chunk_backward<T>(p, t, c, x, &g, parameters);
  }
  block_each(size, [&](int64_t i) {
    parameters[i] = g.frozen[i] - (given ? given[i] : 0);
    if (!to_state) return;
    put(to_state + i, g.frozen[i], accumulate);
    put(to_state + size + i, x.fresh ? 0 : g.running[i], accumulate);
    if (t.momentum) put(to_state + 2 * size + i, g.velocity[i], accumulate);
  });
}

template <class T> static void backward(const comba_call *call) {
  const memory_problem p = operands_of(call, true);
  const int64_t matrix = p.rows * p.V;
  walk_back<T><<<(unsigned)(p.sequences * p.heads), THREADS, 0, comba_cuda_stream()>>>(p);
  comba_cuda_note(cudaGetLastError(), "memory, backward");
  sum_parameter(p, MEMORY, 0, p.K * p.V, false);
  sum_parameter(p, BIAS, p.K * p.V, p.V, false);
  sum_parameter(p, NORM_WEIGHT, matrix, p.V, false);
  sum_parameter(p, NORM_BIAS, matrix + p.V, p.V, false);
  sum_parameter(p, TOKEN_OFFSET, matrix + 2 * p.V, p.chunk, true);
}

COMBA_CUDA_ROW(memory, infer);
