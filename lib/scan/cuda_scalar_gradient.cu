/* Backward of cuda_scalar.h. */
#include "scan/cuda_scalar_private.h"

/* inner (rows) = <a, b> of rows of `width`, a float and b T; a warp a row. */
template <class T>
static __global__ void row_products(const float *a, const T *b, int64_t rows, int64_t width, float *inner) {
  const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  float sum = 0;
  for (int64_t j = threadIdx.x; j < width; j += 32) sum += a[row * width + j] * load(b + row * width + j);
  sum = warp_sum(sum);
  if (!threadIdx.x) inner[row] = sum;
}
template <class T>
static void find_row_products(const float *a, const void *b, int64_t rows, int64_t width, float *inner) {
  row_products<<<(unsigned)((rows + 7) / 8), dim3(32, 8), 0, comba_cuda_stream()>>>(a, (const T *)b, rows, width,
                                                                                    inner);
}

/* across (slots) = e^{G_n} <S, dS'>; a block a slot */
template <class T>
static __global__ void state_products(const T *states, const T *gradients, const double *G, int64_t size,
                                      float *across) {
  const int64_t slot = blockIdx.x;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x)
    sum += load(states + slot * size + i) * load(gradients + slot * size + i);
  sum = block_sum(sum);
  if (!threadIdx.x) across[slot] = sum * decay(G[slot * CHUNK + CHUNK - 1]);
}

/* From F = do (beta e)^T and H = y (beta e)^T to the gradients of q k^T and p k^T, and dg: a gate lies between tokens, and its
 * gradient is the sum over the paths that pass it (gate_paths in scalar.h). A block a slot; thread j follows the paths
 * from token j, then thread t sums those past gate t. */
template <class T>
static __global__ void score_gradients(const shape s, const float *score, const float *feedback, const float *F,
                                       const float *H, const double *G_, const float *beta_, float scale, bool delta,
                                       bool after_decay, const float *from_q, const float *from_p,
                                       const float *to_state, const float *across, T *to_score, T *to_feedback,
                                       float *dg, bool accumulate) {
  __shared__ float past[CHUNK][CHUNK + 1], from[CHUNK], to[CHUNK];
  const int64_t slot = blockIdx.x, at = slot * MATRIX;
  const double *G = G_ + slot * CHUNK;
  const float *beta = beta_ + slot * CHUNK;
  const int j = threadIdx.x, lag = after_decay ? 0 : 1;
  float paths = 0;
  for (int t = CHUNK - 1; t >= 0; t--) {
    const int i = t + lag;
    if (delta && i < CHUNK && j < t) {
      const double P = after_decay ? G[i] : (i ? G[i - 1] : 0);
      paths -= decay(P - G[j]) * feedback[at + i * CHUNK + j] * beta[i] * H[at + i * CHUNK + j];
    }
    if (j < t) paths += scale * decay(G[t] - G[j]) * score[at + t * CHUNK + j] * F[at + t * CHUNK + j];
    past[t][j] = j < t ? paths : 0;
  }
  for (int i = 0; i < CHUNK; i++) {
    const double P = after_decay ? G[i] : (i ? G[i - 1] : 0);
    store(to_score + at + i * CHUNK + j, j <= i ? scale * decay(G[i] - G[j]) * F[at + i * CHUNK + j] : 0);
    if (delta) store(to_feedback + at + i * CHUNK + j, j < i ? -beta[i] * decay(P - G[j]) * H[at + i * CHUNK + j] : 0);
  }
  from[j] = from_q[slot * CHUNK + j] + (delta && j + lag < CHUNK ? from_p[slot * CHUNK + j + lag] : 0);
  to[j] = to_state[slot * CHUNK + j];
  __syncthreads();
  int64_t head;
  const cuda_piece p = piece_of_slot(s, slot, &head);
  if (!dg || j >= p.count) return;
  float sum = across[slot];
  for (int i = 0; i < CHUNK; i++) sum += past[j][i] + (i < j ? to[i] : from[i]);
  put(dg + (p.row + j) * s.heads + head, sum, accumulate);
}

/* Gradients of (B T, heads, width) from those of the slots: a head of theirs is read by a group of value heads, whose gradients are
 * added in order. `more` (or NULL) is added as well. */
template <class T>
static void unpack(const shape &s, const float *from, const float *more, int64_t heads, int64_t width, void *to_,
                   bool accumulate) {
  T *to = (T *)to_;
  const int64_t group = s.heads / heads, lanes_steps = s.slots / s.heads;
  if (!to) return;
  comba_each(lanes_steps * heads * CHUNK * width, [=] __device__(int64_t x) {
    const int64_t column = x % width, i = x / width % CHUNK, h = x / width / CHUNK % heads;
    const int64_t chunk = x / width / CHUNK / heads;
    const cuda_piece p = piece_at(s, chunk / s.lanes, chunk % s.lanes);
    if (i >= p.count) return;
    float sum = 0;
    for (int64_t member = 0; member < group; member++) {
      const int64_t at = ((chunk * s.heads + h * group + member) * CHUNK + i) * width + column;
      sum += from[at] + (more ? more[at] : 0);
    }
    put(to + ((p.row + i) * heads + h) * width + column, sum, accumulate);
  });
}

/* The gradient of the state from the last chunk to the first: y, and the gradient after each chunk. */
template <class T> static void go_back(const cuda_scalar *c, const shape &s, const buffers &b) {
  const int64_t K = s.K, V = s.V, batch = s.lanes * s.heads;
  const double *G = b.G;
  const float *beta = b.beta, *final_gradient = c->final_state_gradient;
  const bool after_decay = c->after_decay, delta = c->delta, add_state = c->add_state;
  float *state = b.state, *initial_gradient = c->initial_state_gradient;
  for (int64_t step = s.steps - 1; step >= 0; step--) {
    const int64_t first = step * batch;
    T *gradients = (T *)b.state_gradients + first * K * V, *y_read = (T *)b.y_read + first * CHUNK * V;
    T *y_narrow = (T *)b.product + first * CHUNK * V;
    float *y = b.y + first * CHUNK * V;
    comba_each(batch * K * V, [=] __device__(int64_t i) {
      const int64_t lane = i / V / K / s.heads, head = i / V / K % s.heads;
      const cuda_piece p = piece_at(s, step, lane);
      if (p.last) state[i] = final_gradient ? final_gradient[(p.sequence * s.heads + head) * K * V + i % (K * V)] : 0;
      store(gradients + i, state[i]);
    });
    multiply<T>(false, false, CHUNK, V, K, 1, (T *)(delta ? b.W : b.k_carried) + first * CHUNK * K, gradients, true, y,
                true, batch);
    if (delta)
      comba_each(batch * CHUNK * V, [=] __device__(int64_t x) {
        const int64_t i = x / V % CHUNK, slot = first + x / V / CHUNK;
        store(y_narrow + x, y[x]);
        store(y_read + x, -beta[slot * CHUNK + i] * feedback_decay(G + slot * CHUNK, (int)i, after_decay) * y[x]);
      });
    comba_each(batch * K * V,
               [=] __device__(int64_t i) { state[i] *= decay(G[(first + i / V / K) * CHUNK + CHUNK - 1]); });
    multiply<T>(true, false, K, V, CHUNK, 1, (T *)b.q + first * CHUNK * K, (T *)b.dy_read + first * CHUNK * V, true,
                state, true, batch);
    if (delta) multiply<T>(true, false, K, V, CHUNK, 1, (T *)b.p + first * CHUNK * K, y_read, true, state, true, batch);
    if (initial_gradient && (s.cu_seqlens || step == 0))
      comba_each(batch * K * V, [=] __device__(int64_t i) {
        const int64_t lane = i / V / K / s.heads, head = i / V / K % s.heads;
        const cuda_piece p = piece_at(s, step, lane);
        if (p.first) put(initial_gradient + (p.sequence * s.heads + head) * K * V + i % (K * V), state[i], add_state);
      });
  }
}

template <class T> void cuda_scalar_backward(const cuda_scalar *given, float *workspace) {
  cuda_scalar problem = *given;
  const cuda_scalar *c = &problem;
  problem.final_state = NULL; /* forward has written it */
  const shape s = shape_of(c);
  const int64_t K = s.K, V = s.V, slots = s.slots, rows = slots * CHUNK;
  const float scale = c->scale;
  const bool delta = c->delta;
  buffers b;
  cuda_scalar_lay_out(&b, s, workspace, true, sizeof(T));
  const double *G = b.G;
  cuda_scalar_advance<T>(c, s, b, delta ? (T *)b.inverse2 : NULL);
  pack<T>(s, c->output_gradient, s.heads, V, b.dy, [] __device__(int64_t, int) { return 1.0f; });
  pack<T>(s, c->output_gradient, s.heads, V, b.dy_read,
          [=] __device__(int64_t slot, int i) { return scale * decay(G[slot * CHUNK + i]); });
  pack<T>(s, c->k, c->k_heads, K, b.k_carried,
          [=] __device__(int64_t slot, int i) { return decay(G[slot * CHUNK + CHUNK - 1] - G[slot * CHUNK + i]); });
  /* y = inverse2^T (A^T do + e^{G_n - G} k dS') */
  if (delta) {
    multiply<T>(true, false, CHUNK, V, CHUNK, 1, b.A, b.dy, false, b.product, false, slots);
    multiply<T>(true, false, CHUNK, V, CHUNK, 1, b.inverse2, b.product, false, b.y, true, slots);
    multiply<T>(true, false, CHUNK, K, CHUNK, 1, b.inverse2, b.k_carried, false, b.W, false, slots);
  } else {
    multiply<T>(true, false, CHUNK, V, CHUNK, 1, b.A, b.dy, false, b.y, true, slots);
  }
  go_back<T>(c, s, b);

  const float *y = b.y, *beta = b.beta, *errors = b.errors;
  T *dv = (T *)c->dv;
  float *dbeta = c->dbeta;
  const bool add_beta = c->add_beta;
  multiply<T>(false, true, CHUNK, CHUNK, V, 1, b.dy, b.written, false, b.score_gradient, true, slots);
  if (delta)
    multiply<T>(false, true, CHUNK, CHUNK, V, 1, b.product, b.written, false, b.feedback_gradient, true, slots);
  multiply<T>(false, true, CHUNK, K, V, 1, b.dy_read, b.states, false, b.dq, true, slots);
  find_row_products<T>(b.dq, b.q, rows, K, b.from_q);
  if (delta) {
    multiply<T>(false, true, CHUNK, K, V, 1, b.y_read, b.states, false, b.dp, true, slots);
    find_row_products<T>(b.dp, b.p, rows, K, b.from_p);
  }
  /* what each token leaves in S', and the paths from it */
  multiply<T>(false, true, CHUNK, K, V, 1, b.carried, b.state_gradients, false, b.dk, true, slots);
  find_row_products<T>(b.dk, b.k, rows, K, b.to_state);
  state_products<<<(unsigned)slots, 256, 0, comba_cuda_stream()>>>((const T *)b.states, (const T *)b.state_gradients, G,
                                                                   K * V, b.across);
  score_gradients<<<(unsigned)slots, CHUNK, 0, comba_cuda_stream()>>>(
      s, b.score, b.feedback, b.score_gradient, b.feedback_gradient, G, beta, scale, delta, c->after_decay, b.from_q,
      b.from_p, b.to_state, b.across, (T *)b.to_score, (T *)b.to_feedback, c->dg, c->add_g);
  comba_cuda_note(cudaGetLastError(), "the scan over chunks, backward");
  multiply<T>(false, false, CHUNK, K, CHUNK, 1, b.to_score, b.k, true, b.dq, true, slots);
  multiply<T>(true, false, CHUNK, K, CHUNK, 1, b.to_score, b.q, true, b.dk, true, slots);
  if (delta) {
    multiply<T>(true, false, CHUNK, K, CHUNK, 1, b.to_feedback, b.p, true, b.dk, true, slots);
    multiply<T>(false, false, CHUNK, K, CHUNK, 1, b.to_feedback, b.k, true, b.dp, true, slots);
  }
  unpack<T>(s, b.dq, NULL, c->q_heads, K, c->dq, c->add_q);
  unpack<T>(s, b.dk, delta && !c->p ? b.dp : NULL, c->k_heads, K, c->dk, c->add_k);
  if (delta && c->p) unpack<T>(s, b.dp, NULL, c->k_heads, K, c->dp, c->add_p);
  if (dbeta) {
    float *sums = b.from_q; /* no longer needed */
    comba_each(rows, [=] __device__(int64_t row) {
      float sum = 0;
      for (int64_t j = 0; j < V; j++) sum += y[row * V + j] * errors[row * V + j];
      sums[row] = sum;
    });
    unpack<float>(s, sums, NULL, s.heads, 1, dbeta, add_beta);
  }
  if (!dv) return;
  float *scaled = b.errors; /* no longer needed */
  comba_each(rows * V, [=] __device__(int64_t x) { scaled[x] = beta[x / V] * y[x]; });
  unpack<T>(s, scaled, NULL, c->v_heads, V, dv, c->add_v);
}

template void cuda_scalar_backward<float>(const cuda_scalar *, float *);
template void cuda_scalar_backward<bfloat16>(const cuda_scalar *, float *);
