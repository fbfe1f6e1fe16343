#include "scan/cuda_scalar_private.h"

/* ---- Workspace ------------------------------------------------------------------------------------------------------ */

int64_t cuda_scalar_lay_out(buffers *b, const shape &s, float *base, bool backward, int64_t type_size) {
  int64_t offset = 0;
  const auto take = [&](int64_t elements, int64_t size) {
    float *result = base ? base + offset : NULL;
    offset += (elements * size / (int64_t)sizeof(float) + 63) / 64 * 64 + 64;
    return result;
  };
  const int64_t keys = s.slots * CHUNK * s.K, values = s.slots * CHUNK * s.V, matrices = s.slots * MATRIX;
  const int64_t rows = s.slots * CHUNK, states = s.slots * s.K * s.V, f = sizeof(float), t = type_size;
  const int64_t delta_keys = s.delta ? keys : 0;
  const int64_t delta_matrices = s.delta ? matrices : 0;
  b->G = (double *)take(rows, sizeof(double));
  b->beta = take(rows, f);
  b->q = take(keys, t);
  b->k = take(keys, t);
  b->p = take(delta_keys, t);
  b->v = take(values, t);
  b->q_read = take(keys, t);
  b->p_read = take(delta_keys, t);
  b->score = take(matrices, f);
  b->feedback = take(delta_matrices, f);
  b->A = take(matrices, t);
  b->inverse = take(delta_matrices, t);
  b->W = take(delta_keys, t);
  b->errors = take(values, f);
  b->written = take(values, t);
  b->carried = take(values, t);
  b->states = take(states, t);
  b->state = take(s.lanes * s.heads * s.K * s.V, f);
  b->output = take(backward ? 0 : values, f);
  return offset;
}

/* ---- Kernels -------------------------------------------------------------------------------------------------------- */

/* G and beta of a slot, a thread each; tokens that are missing add nothing and have beta 0. */
static void find_gates(const cuda_scalar *c, const shape &s, const buffers &b) {
  const float *g = c->g, *beta = c->beta;
  double *G = b.G;
  float *betas = b.beta;
  const int retention = c->retention;
  const bool delta = c->delta;
  comba_each(s.slots, [=] __device__(int64_t slot) {
    int64_t head;
    const cuda_piece p = piece_of_slot(s, slot, &head);
    const double constant = retention ? log1p(-exp2(-(double)retention - (double)head)) : 0;
    double sum = 0;
    for (int i = 0; i < CHUNK; i++) {
      const int64_t at = (p.row + i) * s.heads + head;
      if (i < p.count) sum += g ? g[at] : constant;
      G[slot * CHUNK + i] = sum;
      betas[slot * CHUNK + i] = i < p.count ? (delta ? beta[at] : 1) : 0;
    }
  });
}

/* A = tril(scale e^{G_i - G_j} score); inverse = (I + L)^-1 of L = stril(e^{P_i - G_j} feedback) times beta_j, and inverse2, where it
 * is wanted, of the same times beta_i. A block a slot, a thread a column. */
template <class T>
static __global__ void mask_and_invert(const float *score, const float *feedback, const double *G_, const float *beta_,
                                       float scale, bool delta, bool after_decay, T *A, T *inverse, T *inverse2) {
  __shared__ float L[CHUNK][CHUNK + 1], x[CHUNK][CHUNK + 1];
  const int64_t at = (int64_t)blockIdx.x * MATRIX;
  const double *G = G_ + (int64_t)blockIdx.x * CHUNK;
  const float *beta = beta_ + (int64_t)blockIdx.x * CHUNK;
  const int j = threadIdx.x;
  for (int i = 0; i < CHUNK; i++)
    store(A + at + i * CHUNK + j, j <= i ? scale * decay(G[i] - G[j]) * score[at + i * CHUNK + j] : 0);
  if (!delta) return;
  for (int round = 0; round < (inverse2 ? 2 : 1); round++) {
    for (int i = 0; i < CHUNK; i++) {
      const double P = after_decay ? G[i] : (i ? G[i - 1] : 0);
      L[i][j] = j < i ? decay(P - G[j]) * feedback[at + i * CHUNK + j] * beta[round ? i : j] : 0;
    }
    __syncthreads();
    for (int i = 0; i < CHUNK; i++) {
      float sum = i == j;
      for (int m = j; m < i; m++) sum -= L[i][m] * x[m][j];
      x[i][j] = i < j ? 0 : sum;
    }
    T *to = round ? inverse2 : inverse;
    for (int i = 0; i < CHUNK; i++) store(to + at + i * CHUNK + j, x[i][j]);
    __syncthreads();
  }
}

/* ---- Forward -------------------------------------------------------------------------------------------------------- */

template <class T> void cuda_scalar_advance(const cuda_scalar *c, const shape &s, const buffers &b, T *inverse2) {
  const int64_t K = s.K, V = s.V, slots = s.slots, batch = s.lanes * s.heads;
  const double *G = b.G;
  const float *beta = b.beta, *initial = c->initial_state;
  const float scale = c->scale;
  const bool after_decay = c->after_decay, delta = c->delta;
  const auto one = [] __device__(int64_t, int) { return 1.0f; };
  find_gates(c, s, b);
  pack<T>(s, c->q, c->q_heads, K, b.q, one);
  pack<T>(s, c->k, c->k_heads, K, b.k, one);
  pack<T>(s, c->v, c->v_heads, V, b.v, one);
  pack<T>(s, c->q, c->q_heads, K, b.q_read,
          [=] __device__(int64_t slot, int i) { return scale * decay(G[slot * CHUNK + i]); });
  multiply<T>(false, true, CHUNK, CHUNK, K, 1, b.q, b.k, false, b.score, true, slots);
  if (delta) {
    const void *p = c->p ? c->p : c->k;
    pack<T>(s, p, c->k_heads, K, b.p, one);
    pack<T>(s, p, c->k_heads, K, b.p_read,
            [=] __device__(int64_t slot, int i) { return feedback_decay(G + slot * CHUNK, i, after_decay); });
    multiply<T>(false, true, CHUNK, CHUNK, K, 1, b.p, b.k, false, b.feedback, true, slots);
  }
  mask_and_invert<<<(unsigned)slots, CHUNK, 0, comba_cuda_stream()>>>(b.score, b.feedback, G, beta, scale, delta,
                                                                      after_decay, (T *)b.A, (T *)b.inverse, inverse2);
  comba_cuda_note(cudaGetLastError(), "the scan over chunks");
  if (delta) {
    multiply<T>(false, false, CHUNK, V, CHUNK, 1, b.inverse, b.v, false, b.errors, true, slots);
    multiply<T>(false, false, CHUNK, K, CHUNK, 1, b.inverse, b.p_read, false, b.W, false, slots);
  } else {
    const T *v = (const T *)b.v;
    float *errors = b.errors;
    comba_each(slots * CHUNK * V, [=] __device__(int64_t i) { errors[i] = load(v + i); });
  }
  float *state = b.state, *final_state = c->final_state;
  for (int64_t step = 0; step < s.steps; step++) {
    const int64_t first = step * batch;
    T *states = (T *)b.states + first * K * V, *written = (T *)b.written + first * CHUNK * V;
    T *carried = (T *)b.carried + first * CHUNK * V;
    float *errors = b.errors + first * CHUNK * V;
    comba_each(batch * K * V, [=] __device__(int64_t i) {
      const int64_t lane = i / V / K / s.heads, head = i / V / K % s.heads;
      const cuda_piece p = piece_at(s, step, lane);
      if (p.first) state[i] = initial ? initial[(p.sequence * s.heads + head) * K * V + i % (K * V)] : 0;
      store(states + i, state[i]);
    });
    if (delta)
      multiply<T>(false, false, CHUNK, V, K, -1, (T *)b.W + first * CHUNK * K, states, true, errors, true, batch);
    comba_each(batch * CHUNK * V, [=] __device__(int64_t x) {
      const int64_t i = x / V % CHUNK, slot = first + x / V / CHUNK;
      const float value = beta[slot * CHUNK + i] * errors[x];
      store(written + x, value);
      store(carried + x, value * decay(G[slot * CHUNK + CHUNK - 1] - G[slot * CHUNK + i]));
    });
    comba_each(batch * K * V,
               [=] __device__(int64_t i) { state[i] *= decay(G[(first + i / V / K) * CHUNK + CHUNK - 1]); });
    multiply<T>(true, false, K, V, CHUNK, 1, (T *)b.k + first * CHUNK * K, carried, true, state, true, batch);
    if (final_state && (s.cu_seqlens || step == s.steps - 1))
      comba_each(batch * K * V, [=] __device__(int64_t i) {
        const int64_t lane = i / V / K / s.heads, head = i / V / K % s.heads;
        const cuda_piece p = piece_at(s, step, lane);
        if (p.last) final_state[(p.sequence * s.heads + head) * K * V + i % (K * V)] = state[i];
      });
  }
}

template <class T> void cuda_scalar_forward(const cuda_scalar *c, float *workspace) {
  const shape s = shape_of(c);
  buffers b;
  cuda_scalar_lay_out(&b, s, workspace, false, sizeof(T));
  cuda_scalar_advance<T>(c, s, b, NULL);
  multiply<T>(false, false, CHUNK, s.V, s.K, 1, b.q_read, b.states, false, b.output, true, s.slots);
  multiply<T>(false, false, CHUNK, s.V, CHUNK, 1, b.A, b.written, true, b.output, true, s.slots);
  const float *output = b.output;
  T *o = (T *)c->o;
  comba_each(s.slots * CHUNK * s.V, [=] __device__(int64_t x) {
    const int64_t i = x / s.V % CHUNK;
    int64_t head;
    const cuda_piece p = piece_of_slot(s, x / s.V / CHUNK, &head);
    if (i < p.count) store(o + ((p.row + i) * s.heads + head) * s.V + x % s.V, output[x]);
  });
}

template void cuda_scalar_advance<float>(const cuda_scalar *, const shape &, const buffers &, float *);
template void cuda_scalar_advance<bfloat16>(const cuda_scalar *, const shape &, const buffers &, bfloat16 *);
template void cuda_scalar_forward<float>(const cuda_scalar *, float *);
template void cuda_scalar_forward<bfloat16>(const cuda_scalar *, float *);
