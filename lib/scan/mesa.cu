/* MesaNet's query on a GPU, in chunks of 64 tokens whatever the mode (mesa.c has the formulas). Two kernels: the states before the
 * chunks, a block to each sequence and head; and the systems by conjugate gradients, a block to 16 tokens of a chunk, whose keys and state
 * stay in shared memory. Backward has the engine of scalar decay between. */
#include "ops/cuda_rows.h"
#include "scan/cuda_block.h"
#include "scan/cuda_chunks.h"
#include "scan/cuda_scalar.h"

enum { Q, KEY, BETA, GATE, INITIAL_STATE, CU_SEQLENS, LAMBDA, INPUTS };
enum { OUTPUT, FINAL_STATE };
enum { STATES };
enum { DEFAULT_STEPS = 30, THREADS = 256, WARPS = THREADS / 32, SUMS = 64 /* of tokens, for the gradient of lambda */ };
enum { GROUP = 16, GROUPS = CHUNK / GROUP }; /* tokens whose systems a block solves side by side */
static const int score_row = 68;             /* between rows of (16,64) */

typedef struct mesa_problem {
  cuda_chunks chunks;
  int64_t tokens, steps;
  int K;
  bool copy_states; /* a chunk's state fits into shared memory, beside what else is there */
  float lower_bound;
  const void *k;
  const float *beta, *g, *initial_state, *lambda;
  float *states; /* (slots,K,K) before each chunk */
} mesa_problem;

/* Of shared memory, for a block that solves; `copy`: with the state. */
static int64_t solve_floats(const mesa_problem &p, bool copy) {
  const int64_t row = row_stride(p.K);
  return (CHUNK + 4 * GROUP + 1 + (copy ? p.K : 0)) * row + 2 * GROUP * score_row;
}

static mesa_problem problem_of(const comba_shape *shapes, const comba_mesa_attributes *attributes) {
  const comba_shape *k = &shapes[KEY];
  const bool packed = shapes[CU_SEQLENS].rank;
  mesa_problem p = {};
  p.chunks = cuda_chunks_of(k->size[1], packed ? shapes[CU_SEQLENS].size[0] - 1 : k->size[0], k->size[2], packed, NULL);
  p.tokens = k->size[0] * k->size[1];
  p.K = (int)k->size[3];
  p.steps = attributes->steps ? attributes->steps : DEFAULT_STEPS;
  p.lower_bound = (float)attributes->lower_bound;
  p.copy_states = solve_floats(p, true) * (int64_t)sizeof(float) + 4096 /* static */ <= comba_cuda_shared_bytes();
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
  float *states;
  /* backward: (B T,H,K) of T, room for float; (SUMS,H,K) */
  float *read_gradient, *written, *written_gradient, *partial, *scalar;
} mesa_buffers;

static int64_t lay_out(mesa_buffers *b, const mesa_problem &p, float *base, bool backward) {
  const int64_t rows = p.tokens * p.chunks.heads * p.K;
  cuda_arena arena = {base, 0};
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
  return p;
}

/* G (CHUNK): inclusive sums of a chunk's gates, two a lane of the first warp */
static __device__ void sum_gates(const mesa_problem &p, const cuda_piece &piece, int64_t head, double *G) {
  const int lane = threadIdx.x, i = 2 * lane;
  if (lane < 32) {
    const float *g = p.g + (piece.row + i) * p.chunks.heads + head;
    const double first = i < piece.count ? g[0] : 0, both = first + (i + 1 < piece.count ? g[p.chunks.heads] : 0);
    double sum = both;
    for (int offset = 1; offset < 32; offset *= 2) {
      const double before = __shfl_up_sync(~0u, sum, offset);
      if (lane >= offset) sum += before;
    }
    G[i] = sum - both + first;
    G[i + 1] = sum;
  }
  __syncthreads();
}

/* to (n,K) in shared memory = keys of the piece */
template <class T>
static __device__ void load_keys(const mesa_problem &p, const cuda_piece &piece, int64_t head, int n, float *to,
                                 int row) {
  const T *k = (const T *)p.k + (piece.row * p.chunks.heads + head) * p.K;
  const int64_t step = p.chunks.heads * p.K;
  start_load(n, p.K, to, row, [=](int i, int c) { return load_constant(k + i * step + c); });
}

/* The states before the chunks of a sequence and head, and the final one: state' = e^total state + sum_j left_j k_j k_j^T. */
template <class T>
static __global__ void __launch_bounds__(THREADS) pass_states(const mesa_problem p, float *final_states) {
  extern __shared__ int4 shared[];
  __shared__ double G[CHUNK];
  __shared__ float weight[CHUNK];
  const cuda_chunks c = p.chunks;
  const int64_t sequence = blockIdx.x / c.heads, head = blockIdx.x % c.heads, size = (int64_t)p.K * p.K;
  const int64_t lane = c.cu_seqlens ? 0 : sequence;
  const int K = p.K, row = row_stride(K);
  int64_t step = c.cu_seqlens ? c.cu_seqlens[sequence] / CHUNK + sequence : 0;
  float *const k = (float *)shared, *const left =
                                        k + CHUNK * row; /* beta times what is left of a token at the chunk's end */
  const float *state = p.initial_state ? p.initial_state + blockIdx.x * size : NULL;
  float total = 1;
  int count = 0;
  for (;; step++) { /* the state after the chunk before, which is where this one starts, or the final one */
    const cuda_piece next = step < c.steps ? piece_at(c, step, lane) : cuda_piece{};
    const bool more = step < c.steps && next.sequence == sequence && next.count > 0;
    float *to = more ? p.states + ((step * c.lanes + lane) * c.heads + head) * size : final_states + blockIdx.x * size;
    block_update(
        K, K, count, transposed(left, row), rows_of(k, row),
        [&](int i, int j) { return state ? total * state[i * K + j] : 0; },
        [&](int i, int j, float sum, float old) { to[i * K + j] = old + sum; });
    if (!more) return;
    count = next.count;
    load_keys<T>(p, next, head, count, k, row);
    sum_gates(p, next, head, G);
    for (int j = threadIdx.x; j < count; j += THREADS)
      weight[j] = p.beta[(next.row + j) * c.heads + head] * decay_of((float)(G[count - 1] - G[j]));
    __syncthreads();
    block_matrix(count, K, [&](int j, int i) { left[j * row + i] = weight[j] * k[j * row + i]; });
    total = decay_of((float)G[count - 1]);
    state = to;
  }
}
static int64_t pass_floats(const mesa_problem &p) {
  return 2 * CHUNK * row_stride(p.K);
}

/* One token's step along its direction by a warp, product = (H + diag(lambda)) direction: `square` is |r|^2, and its new value is returned;
 * 0 ends the iteration. */
static __device__ float descend(int K, float square, const float *product, float *x, float *r, float *direction) {
  const float curvature = warp_inner_product(K, direction, product);
  if (!(curvature > 0)) return 0; /* rounding has taken over */
  const float along = square / curvature;
  float next = 0;
  for (int n = threadIdx.x % 32; n < K; n += 32) {
    x[n] += along * direction[n];
    r[n] -= along * product[n];
    next += r[n] * r[n];
  }
  next = warp_sum(next);
  for (int n = threadIdx.x % 32; n < K; n += 32) direction[n] = r[n] + next / square * direction[n];
  return next;
}

/* Solutions x of the systems of 16 tokens of a chunk with right-hand sides b (B T,H,K), or zero without; store_x(at, x) takes number `at` of
 * them. A product with their matrices, of the directions P (16,K), is e^G (P state) + (weights P k^T) k + lambda P. */
template <class T, class F>
static __global__ void __launch_bounds__(THREADS, 2) solve_systems(const mesa_problem p, const T *b, F store_x) {
  extern __shared__ int4 shared[];
  __shared__ double G[CHUNK];
  __shared__ float square[GROUP], enough[GROUP], decay[GROUP], beta[CHUNK];
  const cuda_chunks c = p.chunks;
  const int K = p.K, row = row_stride(K), first = blockIdx.x % GROUPS * GROUP;
  int64_t head;
  const cuda_piece piece = piece_of_slot(c, blockIdx.x / GROUPS, &head);
  if (first >= piece.count) return;
  const int count = min((int)GROUP, piece.count - first), keys = first + count; /* what these tokens see */
  const float *states = p.states + (int64_t)(blockIdx.x / GROUPS) * K * K, *lambda = p.lambda + head * K;
  float *const k = (float *)shared, *const x = k + CHUNK * row, *const r = x + GROUP * row;
  float *const direction = r + GROUP * row, *const product = direction + GROUP * row;
  float *const weights = product + GROUP * row, *const scores = weights + GROUP * score_row;
  float *const shift = scores + GROUP * score_row, *const copy = shift + row; /* of the state, if there is room */
  const int state_row = p.copy_states ? row : K;
  const block_factor state = rows_of(p.copy_states ? copy : states, state_row);
  load_keys<T>(p, piece, head, keys, k, row);
  for (int j = threadIdx.x; j < keys; j += THREADS) beta[j] = p.beta[(piece.row + j) * c.heads + head];
  sum_gates(p, piece, head, G);
  const auto place_of = [&](int i) { return ((piece.row + first + i) * c.heads + head) * K; };
  for (int n = threadIdx.x; n < K; n += THREADS)
    shift[n] = fmaxf(lambda[n], 0) + log1pf(expf(-fabsf(lambda[n]))) + p.lower_bound;
  if (p.copy_states) start_load(K, K, copy, row, [&](int i, int j) { return load_constant(states + i * K + j); });
  block_matrix(count, keys, [&](int i, int j) {
    const int t = first + i;
    weights[i * score_row + j] = j > t ? 0 : beta[j] * decay_of((float)(G[t] - G[j]));
  });
  block_rows(count, [&](int64_t i, int lane) {
    float sum = 0;
    for (int n = lane; n < K; n += 32) {
      const float value = b ? load(b + place_of((int)i) + n) : 0;
      x[i * row + n] = 0;
      r[i * row + n] = direction[i * row + n] = value;
      sum += value * value;
    }
    sum = warp_sum(sum);
    if (lane) return;
    decay[i] = decay_of((float)G[first + i]);
    square[i] = sum;
    enough[i] = 1e-7f * 1e-7f * sum; /* what float can tell apart */
  });
  for (int64_t step = 0; step < p.steps; step++) {
    bool active = false;
    for (int i = 0; i < count; i++) active |= square[i] > enough[i];
    if (!active) break;
    start_product(count, keys, K, rows_of(direction, row), transposed(k, row),
                  [&](int i, int j, float sum) { scores[i * score_row + j] = weights[i * score_row + j] * sum; });
    block_product(count, K, K, rows_of(direction, row), state, [&](int i, int j, float sum) {
      product[i * row + j] = decay[i] * sum + shift[j] * direction[i * row + j];
    });
    block_sum_product(count, K, keys, rows_of(scores, score_row), rows_of(k, row), 1, product, row);
    block_rows(count, [&](int64_t i, int lane) {
      if (!(square[i] > enough[i])) return;
      const float next = descend(K, square[i], product + i * row, x + i * row, r + i * row, direction + i * row);
      __syncwarp();
      if (!lane) square[i] = next;
    });
  }
  block_matrix(count, K, [&](int i, int n) { store_x(place_of(i) + n, x[i * row + n]); });
}

template <class T, class F> static void solve(const mesa_problem &p, const T *b, F store_x) {
  const int bytes = (int)(solve_floats(p, p.copy_states) * (int64_t)sizeof(float));
  comba_cuda_note(cudaFuncSetAttribute(solve_systems<T, F>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                  "mesa's systems");
  solve_systems<<<(unsigned)(p.chunks.slots * GROUPS), THREADS, bytes, comba_cuda_stream()>>>(p, b, store_x);
  comba_cuda_note(cudaGetLastError(), "mesa's systems");
}

template <class T> static void forward(const comba_call *call) {
  mesa_buffers b;
  const mesa_problem p = operands_of(call, &b, false);
  T *o = (T *)call->output[OUTPUT].data;
  float *final_states = (float *)call->output[FINAL_STATE].data;
  const unsigned tasks = (unsigned)(p.chunks.sequences * p.chunks.heads);
  const int bytes = (int)(pass_floats(p) * (int64_t)sizeof(float));
  comba_cuda_note(cudaFuncSetAttribute(pass_states<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                  "mesa's states");
  pass_states<T><<<tasks, THREADS, bytes, comba_cuda_stream()>>>(p, final_states);
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
    comba_each_row(rows, [=] __device__(int64_t row, int64_t lane) {
      const float sum =
          warp_sum_of(K, lane, [=](int64_t i) { return load(written_gradient + row * K + i) * load(k + row * K + i); });
      if (!lane) put(dbeta + row, sum, add_beta);
    });
  backward_lambda(call, p, (const T *)read_gradient, b.partial);
}

COMBA_CUDA_ROW(mesa, infer, 1u << INITIAL_STATE);
