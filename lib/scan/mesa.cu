/* MesaNet's query on a GPU, in chunks of 64 tokens whatever the mode (mesa.c has the formulas). Three kernels: the states before the
 * chunks, a block to each sequence and head; the systems of a chunk by conjugate gradients, a warp to each token's; and in backward, what
 * the engine of scalar decay leaves between. */
#include "scan/cuda_chunks.h"
#include "scan/cuda_scalar.h"

enum { Q, KEY, BETA, GATE, INITIAL_STATE, CU_SEQLENS, LAMBDA, INPUTS };
enum { OUTPUT, FINAL_STATE };
enum { STATES };
enum { DEFAULT_STEPS = 30, WARPS = 8, VECTORS = 4, SUMS = 64 /* of tokens, for the gradient of lambda */ };

typedef struct mesa_problem {
  cuda_chunks chunks;
  int64_t tokens, K, steps;
  float lower_bound;
  const void *k;
  const float *beta, *g, *initial_state, *lambda;
  float *states;  /* (slots,K,K) before each chunk */
  float *vectors; /* (slots, WARPS, VECTORS, K) */
} mesa_problem;

static mesa_problem problem_of(const comba_shape *shapes, const comba_mesa_attributes *attributes) {
  const comba_shape *k = &shapes[KEY];
  const bool packed = shapes[CU_SEQLENS].rank;
  mesa_problem p = {};
  p.chunks = cuda_chunks_of(k->size[1], packed ? shapes[CU_SEQLENS].size[0] - 1 : k->size[0], k->size[2], packed, NULL);
  p.tokens = k->size[0] * k->size[1];
  p.K = k->size[3];
  p.steps = attributes->steps ? attributes->steps : DEFAULT_STEPS;
  p.lower_bound = (float)attributes->lower_bound;
  return p;
}

/* Scalar decay that reads with x, writes beta k and k, and whose output has the gradient -y. */
static cuda_scalar scalar_of(const mesa_problem &p, const int32_t *cu_seqlens) {
  cuda_scalar c = {};
  c.batch = cu_seqlens ? 1 : p.chunks.sequences;
  c.length = p.chunks.length;
  c.sequences = p.chunks.sequences;
  c.q_heads = c.k_heads = c.v_heads = c.heads = p.chunks.heads;
  c.K = c.V = p.K;
  c.scale = 1;
  c.cu_seqlens = cu_seqlens;
  return c;
}

/* Parts of the workspace. */
typedef struct mesa_buffers {
  float *states, *vectors;
  /* backward: (B T,H,K) of T, room for float; (SUMS,H,K) */
  float *read_gradient, *written, *written_gradient, *partial, *scalar;
} mesa_buffers;

static int64_t lay_out(mesa_buffers *b, const mesa_problem &p, float *base, bool backward) {
  const int64_t rows = p.tokens * p.chunks.heads * p.K;
  cuda_arena arena = {base, 0};
  b->vectors = take<float>(&arena, p.chunks.slots * WARPS * VECTORS * p.K);
  if (!backward) {
    b->states = take<float>(&arena, p.chunks.slots * p.K * p.K);
    return arena.used;
  }
  b->read_gradient = take<float>(&arena, rows);
  b->written = take<float>(&arena, rows);
  b->written_gradient = take<float>(&arena, rows);
  b->partial = take<float>(&arena, SUMS * p.chunks.heads * p.K);
  b->scalar = base ? base + arena.used : NULL;
  return arena.used;
}

static comba_status infer(comba_signature *s) {
  static const int32_t packed = 0; /* any address: packed sequences need slots of their own */
  const mesa_problem p = problem_of(s->input, (const comba_mesa_attributes *)s->attributes);
  const cuda_scalar c = scalar_of(p, s->input[CU_SEQLENS].rank ? &packed : NULL);
  mesa_buffers b;
  comba_signature scalar = *s; /* backward's, whose states are not saved */
  const comba_status status = cuda_scalar_infer(&scalar, &c, sizeof(float));
  if (status != COMBA_OK) return status;
  s->forward_workspace = lay_out(&b, p, NULL, false);
  s->backward_workspace = lay_out(&b, p, NULL, true) + scalar.backward_workspace;
  return COMBA_OK;
}

static mesa_problem operands_of(const comba_call *call, mesa_buffers *b, bool backward) {
  comba_shape shapes[INPUTS];
  for (int i = 0; i < INPUTS; i++) shapes[i] = call->input[i].shape;
  mesa_problem p = problem_of(shapes, (const comba_mesa_attributes *)call->attributes);
  lay_out(b, p, (float *)call->workspace, backward);
  p.chunks.cu_seqlens = (const int32_t *)call->input[CU_SEQLENS].data;
  p.k = call->input[KEY].data;
  p.beta = (const float *)call->input[BETA].data;
  p.g = (const float *)call->input[GATE].data;
  p.initial_state = (const float *)call->input[INITIAL_STATE].data;
  p.lambda = (const float *)call->input[LAMBDA].data;
  p.states = call->saved[STATES].data ? (float *)call->saved[STATES].data : b->states;
  p.vectors = b->vectors;
  return p;
}

/* G (CHUNK): inclusive sums of a chunk's gates */
static __device__ void sum_gates(const mesa_problem &p, const cuda_piece &piece, int64_t head, double *G) {
  if (!threadIdx.x) {
    double sum = 0;
    for (int i = 0; i < piece.count; i++) G[i] = sum += p.g[(piece.row + i) * p.chunks.heads + head];
  }
  __syncthreads();
}

/* The states before the chunks of a sequence and head, and the final one. */
template <class T> static __global__ void pass_states(const mesa_problem p, float *final_states) {
  __shared__ double G[CHUNK];
  __shared__ float left[CHUNK]; /* beta times what is left of a token at the chunk's end */
  const cuda_chunks c = p.chunks;
  const int64_t sequence = blockIdx.x / c.heads, head = blockIdx.x % c.heads, K = p.K, size = K * K;
  const int64_t lane = c.cu_seqlens ? 0 : sequence;
  int64_t step = c.cu_seqlens ? c.cu_seqlens[sequence] / CHUNK + sequence : 0;
  const float *state = p.initial_state ? p.initial_state + blockIdx.x * size : NULL;
  float total = 1;
  int count = 0;
  const T *k = NULL;
  for (;; step++) { /* the state after the chunk before, which is where this one starts, or the final one */
    const cuda_piece next = step < c.steps ? piece_at(c, step, lane) : cuda_piece{};
    const bool more = step < c.steps && next.sequence == sequence && next.count > 0;
    float *to = more ? p.states + ((step * c.lanes + lane) * c.heads + head) * size : final_states + blockIdx.x * size;
    for (int64_t x = threadIdx.x; x < size; x += blockDim.x) {
      float sum = state ? total * state[x] : 0;
      for (int j = 0; j < count; j++)
        sum += left[j] * load(k + j * c.heads * K + x / K) * load(k + j * c.heads * K + x % K);
      to[x] = sum;
    }
    __syncthreads();
    if (!more) return;
    sum_gates(p, next, head, G);
    count = next.count;
    k = (const T *)p.k + (next.row * c.heads + head) * K;
    for (int j = threadIdx.x; j < count; j += blockDim.x)
      left[j] = p.beta[(next.row + j) * c.heads + head] * decay_of((float)(G[count - 1] - G[j]));
    total = decay_of((float)G[count - 1]);
    state = to;
    __syncthreads();
  }
}

/* Solutions x of the systems with right-hand sides b (B T,H,K), or zero without; a block a slot, a warp a token at a time.
 * store_x(at, x) takes number `at` of them. */
template <class T, class F> static __global__ void solve_systems(const mesa_problem p, const T *b, F store_x) {
  __shared__ double G[CHUNK];
  __shared__ float weights[WARPS][CHUNK], scores[WARPS][CHUNK];
  const cuda_chunks c = p.chunks;
  const int64_t K = p.K, slot = blockIdx.x, stride = c.heads * K;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t head;
  const cuda_piece piece = piece_of_slot(c, slot, &head);
  const int64_t row = (piece.row * c.heads + head) * K;
  const float *state = p.states + slot * K * K, *lambda = p.lambda + head * K;
  float *x = p.vectors + (slot * WARPS + warp) * VECTORS * K, *r = x + K, *direction = r + K, *product = direction + K;
  const T *k = (const T *)p.k + row;
  if (!piece.count) return;
  sum_gates(p, piece, head, G);
  for (int i = warp; i < piece.count; i += WARPS) {
    const float decay = decay_of((float)G[i]);
    float square = 0;
    for (int j = lane; j <= i; j += 32)
      weights[warp][j] = p.beta[(piece.row + j) * c.heads + head] * decay_of((float)(G[i] - G[j]));
    for (int64_t n = lane; n < K; n += 32) {
      x[n] = 0;
      r[n] = direction[n] = b ? load(b + row + i * stride + n) : 0;
      square += r[n] * r[n];
    }
    square = warp_sum(square);
    const float enough = 1e-7f * 1e-7f * square; /* what float can tell apart */
    for (int64_t step = 0; step < p.steps && square > enough; step++) {
      __syncwarp();
      for (int j = lane; j <= i; j += 32) {
        float sum = 0;
        for (int64_t n = 0; n < K; n++) sum += direction[n] * load(k + j * stride + n);
        scores[warp][j] = weights[warp][j] * sum;
      }
      __syncwarp();
      float curvature = 0, next = 0;
      for (int64_t n = lane; n < K; n += 32) {
        float of_state = 0, sum = 0;
        for (int64_t m = 0; m < K; m++) of_state += direction[m] * state[m * K + n];
        for (int j = 0; j <= i; j++) sum += scores[warp][j] * load(k + j * stride + n);
        const float parameter = lambda[n], shift = fmaxf(parameter, 0) + log1pf(expf(-fabsf(parameter)));
        product[n] = decay * of_state + sum + (shift + p.lower_bound) * direction[n];
        curvature += direction[n] * product[n];
      }
      curvature = warp_sum(curvature);
      if (!(curvature > 0)) break; /* rounding has taken over */
      const float along = square / curvature;
      for (int64_t n = lane; n < K; n += 32) {
        x[n] += along * direction[n];
        r[n] -= along * product[n];
        next += r[n] * r[n];
      }
      next = warp_sum(next);
      for (int64_t n = lane; n < K; n += 32) direction[n] = r[n] + next / square * direction[n];
      square = next;
    }
    for (int64_t n = lane; n < K; n += 32) store_x(row + i * stride + n, x[n]);
    __syncwarp();
  }
}

template <class T, class F> static void solve(const mesa_problem &p, const T *b, F store_x) {
  solve_systems<<<(unsigned)p.chunks.slots, WARPS * 32, 0, comba_cuda_stream()>>>(p, b, store_x);
  comba_cuda_note(cudaGetLastError(), "mesa's systems");
}

template <class T> static void forward(const comba_call *call) {
  mesa_buffers b;
  const mesa_problem p = operands_of(call, &b, false);
  T *o = (T *)call->output[OUTPUT].data;
  float *final_states = (float *)call->output[FINAL_STATE].data;
  const unsigned tasks = (unsigned)(p.chunks.sequences * p.chunks.heads);
  pass_states<T><<<tasks, 256, 0, comba_cuda_stream()>>>(p, final_states);
  comba_cuda_note(cudaGetLastError(), "mesa's states");
  solve(p, (const T *)call->input[Q].data, [=] __device__(int64_t at, float x) { store(o + at, x); });
}

/* dlambda (H,K) = the sum over tokens of x (-y), and through softplus to the parameter. */
template <class T>
static void backward_lambda(const comba_call *call, const mesa_problem &p, const T *read_gradient, float *partial) {
  const int64_t n = p.chunks.heads * p.K, tokens = p.tokens;
  const T *x = (const T *)call->output[OUTPUT].data;
  const float *lambda = p.lambda;
  float *gradient = (float *)call->input_gradient[LAMBDA].data;
  if (!gradient) return;
  comba_each(SUMS * n, [=] __device__(int64_t i) {
    const int64_t c = i % n, part = i / n;
    float sum = 0;
    for (int64_t t = tokens * part / SUMS; t < tokens * (part + 1) / SUMS; t++)
      sum += load(x + t * n + c) * load(read_gradient + t * n + c);
    partial[i] = sum / (1 + expf(-lambda[c]));
  });
  comba_cuda_sum_rows(partial, SUMS, n, call->accumulate[LAMBDA], gradient);
}

template <class T> static void backward(const comba_call *call) {
  mesa_buffers b;
  const mesa_problem p = operands_of(call, &b, true);
  const int64_t K = p.K, rows = p.tokens * p.chunks.heads;
  const T *k = (const T *)p.k;
  const float *beta = p.beta;
  T *read_gradient = (T *)b.read_gradient, *written = (T *)b.written, *written_gradient = (T *)b.written_gradient;
  T *dq = (T *)call->input_gradient[Q].data, *dk = (T *)call->input_gradient[KEY].data;
  float *dbeta = (float *)call->input_gradient[BETA].data;
  const bool add_q = call->accumulate[Q], add_beta = call->accumulate[BETA];
  solve(p, (const T *)call->output_gradient[OUTPUT].data, [=] __device__(int64_t at, float y) {
    store(read_gradient + at, -y);
    if (dq) put(dq + at, y, add_q);
  });
  comba_each(rows * K, [=] __device__(int64_t i) { store(written + i, beta[i / K] * load(k + i)); });

  cuda_scalar c = scalar_of(p, p.chunks.cu_seqlens);
  c.q = call->output[OUTPUT].data;
  c.k = written;
  c.v = k;
  c.g = p.g;
  c.initial_state = p.initial_state;
  c.output_gradient = read_gradient;
  c.final_state_gradient = (const float *)call->output_gradient[FINAL_STATE].data;
  c.dk = written_gradient;
  c.dv = dk;
  c.dg = (float *)call->input_gradient[GATE].data;
  c.initial_state_gradient = (float *)call->input_gradient[INITIAL_STATE].data;
  c.add_v = call->accumulate[KEY];
  c.add_g = call->accumulate[GATE];
  c.add_state = call->accumulate[INITIAL_STATE];
  cuda_scalar_backward<T>(&c, NULL, b.scalar);

  if (dk)
    comba_each(rows * K, [=] __device__(int64_t i) { put(dk + i, beta[i / K] * load(written_gradient + i), true); });
  if (dbeta)
    comba_each(rows, [=] __device__(int64_t row) {
      float sum = 0;
      for (int64_t i = row * K; i < (row + 1) * K; i++) sum += load(written_gradient + i) * load(k + i);
      put(dbeta + row, sum, add_beta);
    });
  backward_lambda(call, p, (const T *)read_gradient, b.partial);
}

COMBA_CUDA_ROW(mesa, infer, 1u << INITIAL_STATE);
