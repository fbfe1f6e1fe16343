/* Diagonal decay in chunks of 64 tokens whatever the mode: on a GPU a recurrence has too little to do at a time. The formulas are those
 * of diagonal_decay_chunk.c: kernels find the scores inside each chunk (cuda_diagonal.h), batched products do the rest, for all
 * chunks at once but where the state passes from one to the next. */
#include "scan/cuda_diagonal.h"

enum { INITIAL_STATE = OPERANDS, CU_SEQLENS, INPUTS };
enum { OUTPUT, FINAL_STATE };

/* ---- The problem and its workspace ------------------------------------------------------------------------------------ */

static cuda_diagonal problem_of(const comba_shape *shapes, const comba_diagonal_decay_attributes *attributes) {
  const comba_shape *q = &shapes[Q];
  const bool packed = shapes[CU_SEQLENS].rank;
  cuda_diagonal d = {};
  int64_t most = 0;
  for (int i = 0; i < OPERANDS; i++) {
    d.heads[i] = shapes[i].rank ? shapes[i].size[2] : 0;
    most = d.heads[i] > most ? d.heads[i] : most;
  }
  d.chunks = cuda_chunks_of(q->size[1], packed ? shapes[CU_SEQLENS].size[0] - 1 : q->size[0], most, packed, NULL);
  d.K = q->size[3];
  d.V = shapes[VALUE].size[3];
  d.readers = 1 + (d.heads[A] > 0);
  d.writers = 1 + (d.heads[B] > 0);
  d.scale = (float)(attributes->scale != 0 ? attributes->scale : 1 / sqrt((double)d.K));
  d.after_decay = attributes->read_after_decay;
  return d;
}

/* (slots, ...) where nothing else is said. Without a there are no reads, without b the delta rule has u in their place. */
template <class T> struct buffers {
  cuda_diagonal_chunk<T> chunk;
  T *inverse; /* (CHUNK,CHUNK) M = (I - ab)^-1, or (I + ak)^-1 */
  T *through; /* (CHUNK,K) M a^, later M^T b~: what reads take from the state, and their gradient from that of the state */
  T *v;       /* (CHUNK,V) */
  float *reads;  /* (CHUNK,V) r, or u = v - r */
  T *product;    /* (CHUNK,V) what M or M^T is multiplied by */
  T *read;       /* (CHUNK,V) reads as products see them */
  T *states;     /* (K,V) before each chunk */
  float *state;  /* (lanes, heads, K, V) */
  float *output; /* (CHUNK,V) */
  /* backward */
  T *dy;                               /* (CHUNK,V) do */
  float *y;                            /* (CHUNK,V) the gradient of r, or of u: minus that of r */
  T *to_read;                          /* (CHUNK,V) the gradient of r */
  T *state_gradients;                  /* (K,V) of the state after each chunk */
  float *across;                       /* (K) */
  float *score_gradient[2][2];         /* (CHUNK,CHUNK) */
  float *dread[2], *dwrite[2], *dgate; /* (CHUNK,K) */
  float *dv;                           /* (CHUNK,V) */
};

/* Lays everything out from `base` on; returns the number of floats. */
template <class T> static int64_t lay_out(buffers<T> *b, const cuda_diagonal &d, float *base, bool backward) {
  const int64_t slots = d.chunks.slots, keys = slots * CHUNK * d.K, values = slots * CHUNK * d.V;
  const int64_t matrices = slots * MATRIX, states = slots * d.K * d.V;
  const bool low_rank = d.readers > 1, two = d.writers > 1;
  cuda_arena arena = {base, 0};
  *b = {};
  for (int r = 0; r < d.readers; r++) b->chunk.read[r] = take<T>(&arena, keys);
  for (int w = 0; w < d.writers; w++) b->chunk.carried[w] = take<T>(&arena, keys);
  b->chunk.total = take<float>(&arena, slots * d.K);
  b->chunk.qk = take<T>(&arena, matrices);
  b->v = take<T>(&arena, values);
  b->states = take<T>(&arena, states);
  b->state = take<float>(&arena, d.chunks.lanes * d.chunks.heads * d.K * d.V);
  if (low_rank) {
    b->chunk.lower = take<float>(&arena, matrices);
    b->inverse = take<T>(&arena, matrices);
    b->through = take<T>(&arena, keys);
    b->reads = take<float>(&arena, values);
    b->product = take<T>(&arena, values);
    b->read = take<T>(&arena, values);
  }
  if (two) {
    b->chunk.qb = take<T>(&arena, matrices);
    b->chunk.ak = take<T>(&arena, matrices);
  }
  if (!backward) {
    b->output = take<float>(&arena, values);
    return arena.used;
  }
  b->dy = take<T>(&arena, values);
  b->state_gradients = take<T>(&arena, states);
  b->across = take<float>(&arena, slots * d.K);
  b->dgate = take<float>(&arena, keys);
  b->dv = take<float>(&arena, values);
  if (low_rank) {
    b->y = d.writers > 1 ? take<float>(&arena, values) : b->dv;
    b->to_read = take<T>(&arena, values);
  }
  for (int r = 0; r < d.readers; r++) {
    b->dread[r] = take<float>(&arena, keys);
    for (int w = 0; w < d.writers; w++) b->score_gradient[r][w] = take<float>(&arena, matrices);
  }
  for (int w = 0; w < d.writers; w++) b->dwrite[w] = take<float>(&arena, keys);
  return arena.used;
}

static comba_status infer(comba_signature *s) {
  const cuda_diagonal d = problem_of(s->input, (const comba_diagonal_decay_attributes *)s->attributes);
  buffers<float> b; /* the larger type */
  s->saved = 0;     /* backward runs forward's chunks again: their states would fill the memory */
  s->forward_workspace = lay_out(&b, d, NULL, false);
  s->backward_workspace = lay_out(&b, d, NULL, true);
  return COMBA_OK;
}

static cuda_diagonal operands_of(const comba_call *call) {
  comba_shape shapes[INPUTS];
  for (int i = 0; i < INPUTS; i++) shapes[i] = call->input[i].shape;
  cuda_diagonal d = problem_of(shapes, (const comba_diagonal_decay_attributes *)call->attributes);
  d.chunks.cu_seqlens = (const int32_t *)call->input[CU_SEQLENS].data;
  for (int i = 0; i < OPERANDS; i++) d.operand[i] = call->input[i].data;
  return d;
}

/* ---- Forward ---------------------------------------------------------------------------------------------------------- */

static bool is_delta_rule(const cuda_diagonal &d) {
  return d.readers > d.writers;
}

template <class T> static void find_all_scores(const cuda_diagonal &d, const cuda_diagonal_chunk<T> &chunk) {
  const unsigned slots = (unsigned)d.chunks.slots;
  const dim3 threads(CHUNK, CHUNK / SCORE_ROWS);
  if (d.readers == 1)
    find_scores<T, 1, 1><<<slots, threads, 0, comba_cuda_stream()>>>(d, chunk);
  else if (d.writers == 1)
    find_scores<T, 2, 1><<<slots, threads, 0, comba_cuda_stream()>>>(d, chunk);
  else
    find_scores<T, 2, 2><<<slots, threads, 0, comba_cuda_stream()>>>(d, chunk);
  comba_cuda_note(cudaGetLastError(), "scores of diagonal decay");
}

/* Everything of forward but its output: scores, states before each chunk, reads, the final state (or NULL). */
template <class T>
static void advance(const cuda_diagonal &d, const buffers<T> &b, const float *initial, float *final_state) {
  const cuda_chunks chunks = d.chunks;
  const int64_t K = d.K, V = d.V, heads = chunks.heads, batch = chunks.lanes * heads;
  const bool low_rank = d.readers > 1, delta = is_delta_rule(d);
  find_reach(d, b.chunk);
  find_all_scores(d, b.chunk);
  pack(chunks, (const T *)d.operand[VALUE], d.heads[VALUE], V, b.v);
  if (low_rank) {
    invert_unit_lower<<<(unsigned)chunks.slots, CHUNK, 0, comba_cuda_stream()>>>(b.chunk.lower, b.inverse);
    comba_cuda_note(cudaGetLastError(), "inverses of diagonal decay");
    multiply(false, false, CHUNK, K, CHUNK, 1, b.inverse, b.chunk.read[1], false, b.through, chunks.slots);
    if (!delta) multiply(false, false, CHUNK, V, CHUNK, 1, b.chunk.ak, b.v, false, b.product, chunks.slots);
    multiply(false, false, CHUNK, V, CHUNK, 1, b.inverse, delta ? b.v : b.product, false, b.reads, chunks.slots);
  }
  float *state = b.state;
  const float *total = b.chunk.total;
  for (int64_t step = 0; step < chunks.steps; step++) {
    const int64_t first = step * batch, keys = first * CHUNK * K, values = first * CHUNK * V;
    T *states = b.states + first * K * V, *read = b.read + values;
    float *reads = b.reads + values;
    comba_each(batch * K * V, [=] __device__(int64_t i) {
      const int64_t lane = i / V / K / heads, head = i / V / K % heads;
      const cuda_piece p = piece_at(chunks, step, lane);
      if (p.first) state[i] = initial ? initial[(p.sequence * heads + head) * K * V + i % (K * V)] : 0;
      store(states + i, state[i]);
      state[i] *= total[first * K + i / V];
    });
    if (low_rank) {
      multiply(false, false, CHUNK, V, K, delta ? -1 : 1, b.through + keys, states, true, reads, batch);
      comba_each(batch * CHUNK * V, [=] __device__(int64_t i) { store(read + i, reads[i]); });
    }
    multiply(true, false, K, V, CHUNK, 1, b.chunk.carried[0] + keys, delta ? read : b.v + values, true, state, batch);
    if (d.writers > 1) multiply(true, false, K, V, CHUNK, 1, b.chunk.carried[1] + keys, read, true, state, batch);
    if (final_state && (chunks.cu_seqlens || step == chunks.steps - 1))
      comba_each(batch * K * V, [=] __device__(int64_t i) {
        const int64_t lane = i / V / K / heads, head = i / V / K % heads;
        const cuda_piece p = piece_at(chunks, step, lane);
        if (p.last) final_state[(p.sequence * heads + head) * K * V + i % (K * V)] = state[i];
      });
  }
}

template <class T> static void forward(const comba_call *call) {
  const cuda_diagonal d = operands_of(call);
  const cuda_chunks chunks = d.chunks;
  const int64_t K = d.K, V = d.V, slots = chunks.slots;
  buffers<T> b;
  lay_out(&b, d, (float *)call->workspace, false);
  advance(d, b, (const float *)call->input[INITIAL_STATE].data, (float *)call->output[FINAL_STATE].data);
  multiply(false, false, CHUNK, V, K, 1, b.chunk.read[0], b.states, false, b.output, slots);
  multiply(false, false, CHUNK, V, CHUNK, 1, b.chunk.qk, is_delta_rule(d) ? b.read : b.v, true, b.output, slots);
  if (d.writers > 1) multiply(false, false, CHUNK, V, CHUNK, 1, b.chunk.qb, b.read, true, b.output, slots);
  unpack(chunks, b.output, chunks.heads, V, (T *)call->output[OUTPUT].data, false);
}

/* ---- Backward --------------------------------------------------------------------------------------------------------- */

/* The gradient of the state from the last chunk to the first: kept as it is after each chunk; and those of the reads. */
template <class T>
static void go_back(const cuda_diagonal &d, const buffers<T> &b, const float *final_gradient, float *initial_gradient,
                    bool accumulate) {
  const cuda_chunks chunks = d.chunks;
  const int64_t K = d.K, V = d.V, heads = chunks.heads, batch = chunks.lanes * heads;
  const bool low_rank = d.readers > 1;
  const float sign = is_delta_rule(d) ? -1 : 1, *total = b.chunk.total;
  float *state = b.state;
  for (int64_t step = chunks.steps - 1; step >= 0; step--) {
    const int64_t first = step * batch, keys = first * CHUNK * K, values = first * CHUNK * V;
    T *gradients = b.state_gradients + first * K * V, *to_read = b.to_read + values;
    float *y = b.y + values;
    comba_each(batch * K * V, [=] __device__(int64_t i) {
      const int64_t lane = i / V / K / heads, head = i / V / K % heads;
      const cuda_piece p = piece_at(chunks, step, lane);
      if (p.last) state[i] = final_gradient ? final_gradient[(p.sequence * heads + head) * K * V + i % (K * V)] : 0;
      store(gradients + i, state[i]);
      state[i] *= total[first * K + i / V];
    });
    multiply(true, false, K, V, CHUNK, 1, b.chunk.read[0] + keys, b.dy + values, true, state, batch);
    if (low_rank) {
      multiply(false, false, CHUNK, V, K, 1, b.through + keys, gradients, true, y, batch);
      comba_each(batch * CHUNK * V, [=] __device__(int64_t i) { store(to_read + i, sign * y[i]); });
      multiply(true, false, K, V, CHUNK, 1, b.chunk.read[1] + keys, to_read, true, state, batch);
    }
    if (initial_gradient && (chunks.cu_seqlens || step == 0))
      comba_each(batch * K * V, [=] __device__(int64_t i) {
        const int64_t lane = i / V / K / heads, head = i / V / K % heads;
        const cuda_piece p = piece_at(chunks, step, lane);
        if (p.first) put(initial_gradient + (p.sequence * heads + head) * K * V + i % (K * V), state[i], accumulate);
      });
  }
}

/* across (rows) = total times <S, dS'>, rows of V; a warp a row */
template <class T>
static __global__ void state_products(const T *states, const T *gradients, const float *total, int64_t rows, int64_t V,
                                      float *across) {
  const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < V; i += 32) sum += load(states + row * V + i) * load(gradients + row * V + i);
  sum = warp_sum(sum);
  if (!threadIdx.x) across[row] = total[row] * sum;
}

template <class T> static void find_all_gradients(const cuda_diagonal &d, const buffers<T> &b) {
  const int64_t rows = d.chunks.slots * d.K;
  state_products<<<(unsigned)((rows + 7) / 8), dim3(32, 8), 0, comba_cuda_stream()>>>(
      b.states, b.state_gradients, b.chunk.total, rows, d.V, b.across);
  cuda_diagonal_gradients f = {};
  f.across = b.across;
  f.gate = b.dgate;
  for (int r = 0; r < 2; r++) {
    f.read[r] = b.dread[r];
    f.write[r] = b.dwrite[r];
    for (int w = 0; w < 2; w++) f.score[r][w] = b.score_gradient[r][w];
  }
  const dim3 grid((unsigned)d.chunks.slots, (unsigned)((d.K + GRADIENT_TILE - 1) / GRADIENT_TILE));
  const dim3 threads(GRADIENT_TILE, GRADIENT_ROWS);
  if (d.readers == 1)
    find_gradients<T, 1, 1><<<grid, threads, 0, comba_cuda_stream()>>>(d, f);
  else if (d.writers == 1)
    find_gradients<T, 2, 1><<<grid, threads, 0, comba_cuda_stream()>>>(d, f);
  else
    find_gradients<T, 2, 2><<<grid, threads, 0, comba_cuda_stream()>>>(d, f);
  comba_cuda_note(cudaGetLastError(), "gradients of diagonal decay");
}

template <class T> static void backward(const comba_call *call) {
  const cuda_diagonal d = operands_of(call);
  const cuda_chunks chunks = d.chunks;
  const int64_t K = d.K, V = d.V, slots = chunks.slots;
  const bool low_rank = d.readers > 1, delta = is_delta_rule(d);
  buffers<T> b;
  lay_out(&b, d, (float *)call->workspace, true);
  advance(d, b, (const float *)call->input[INITIAL_STATE].data, NULL);
  pack(chunks, (const T *)call->output_gradient[OUTPUT].data, chunks.heads, V, b.dy);
  /* y = M^T (qb^T do + b~ dS'), in the delta rule M^T (qk^T do + k~ dS') */
  if (low_rank) {
    multiply(true, false, CHUNK, V, CHUNK, 1, delta ? b.chunk.qk : b.chunk.qb, b.dy, false, b.product, slots);
    multiply(true, false, CHUNK, V, CHUNK, 1, b.inverse, b.product, false, b.y, slots);
    multiply(true, false, CHUNK, K, CHUNK, 1, b.inverse, b.chunk.carried[d.writers - 1], false, b.through, slots);
  }
  go_back(d, b, (const float *)call->output_gradient[FINAL_STATE].data,
          (float *)call->input_gradient[INITIAL_STATE].data, call->accumulate[INITIAL_STATE]);

  /* dv = k~ dS' + qk^T do + ak^T y; in the delta rule y */
  if (!delta) {
    multiply(false, false, CHUNK, V, K, 1, b.chunk.carried[0], b.state_gradients, false, b.dv, slots);
    multiply(true, false, CHUNK, V, CHUNK, 1, b.chunk.qk, b.dy, true, b.dv, slots);
    if (low_rank) multiply(true, false, CHUNK, V, CHUNK, 1, b.chunk.ak, b.to_read, true, b.dv, slots);
  }
  const T *got[] = {b.dy, b.to_read}, *wrote[] = {delta ? b.read : b.v, b.read};
  for (int r = 0; r < d.readers; r++) {
    multiply(false, true, CHUNK, K, V, 1, got[r], b.states, false, b.dread[r], slots);
    for (int w = 0; w < d.writers; w++)
      multiply(false, true, CHUNK, CHUNK, V, 1, got[r], wrote[w], false, b.score_gradient[r][w], slots);
  }
  for (int w = 0; w < d.writers; w++)
    multiply(false, true, CHUNK, K, V, 1, wrote[w], b.state_gradients, false, b.dwrite[w], slots);
  find_all_gradients(d, b);

  const float *gradient[OPERANDS];
  gradient[Q] = b.dread[0];
  gradient[KEY] = b.dwrite[0];
  gradient[VALUE] = b.dv;
  gradient[A] = b.dread[1];
  gradient[B] = b.dwrite[1];
  for (int i = 0; i < OPERANDS; i++)
    if (i != GATE && d.heads[i])
      unpack(chunks, gradient[i], d.heads[i], i == VALUE ? V : K, (T *)call->input_gradient[i].data,
             call->accumulate[i]);
  unpack(chunks, b.dgate, d.heads[GATE], K, (float *)call->input_gradient[GATE].data, call->accumulate[GATE]);
}

COMBA_CUDA_ROW(diagonal_decay, infer, 1u << INITIAL_STATE);
