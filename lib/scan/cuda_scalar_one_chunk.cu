/* The delta rule where a sequence is one chunk that begins without a state: a picture's tokens. With S = 0 in front and no gradient
 * behind, what is left of cuda_scalar.cu is
 *   e = v - C v,  o = A e
 * and of cuda_scalar_gradient.h
 *   y = (A X)^T do,  dv = beta y;  to_score and to_feedback from do e^T and y e^T
 *   dq = to_score k,  dp = to_feedback k,  dk = to_score^T q + to_feedback^T p
 * A block has a sequence and head, from its operands to its results in shared memory; a warp 16 rows and 32 columns of each product. */
#include "scan/cuda_scalar_chunk.h"
#include "scan/cuda_scalar_gradient.h"

enum { THREADS = 256, TILE = 64 };

template <class T> struct one_chunk {
  static constexpr int stride = tile_stride<T, TILE>, tile = TILE * stride;
  /* the places of float matrices, of which the last one serves to write through */
  static constexpr int sheets = THREADS / 32 * sheet_floats<HALF>;
  static constexpr int forward_bytes = 4 * tile * (int)sizeof(T) + (MATRIX_FLOATS + sheets) * (int)sizeof(float);
  static constexpr int backward_bytes = 5 * tile * (int)sizeof(T) + (2 * MATRIX_FLOATS + sheets) * (int)sizeof(float);
};

/* to (rows, columns) in memory = or += the warp's (16, 32) */
template <class T>
static __device__ inline void write_rows(T *to, int stride, int rows, int columns, bool aligned, bool accumulate,
                                         float *sheets, const float (&sum)[HALF / 8][4]) {
  if (aligned)
    tile_write_wide<HALF>(to, stride, rows, columns, accumulate, sheets + threadIdx.x / 32 * sheet_floats<HALF>, sum);
  else
    tile_write<HALF>(to, stride, rows, columns, false, accumulate, sum);
}

/* ---- Forward -------------------------------------------------------------------------------------------------------- */

/* `keeps`: e is for backward too. C takes the place of p, A that of q. */
template <class T>
static __global__ void __launch_bounds__(THREADS, sizeof(T) == 2 ? 3 : 1) run_chunk(const pass a, bool keeps) {
  typedef one_chunk<T> t;
  extern __shared__ int4 shared[];
  __shared__ double G[CHUNK];
  __shared__ float beta[CHUNK];
  T *k = (T *)shared, *q = k + t::tile, *p = q + t::tile, *v = p + t::tile;
  float *M = (float *)(v + t::tile), *R = M + MATRIX_FLOATS, *sheets = R;
  T *A = q, *C = p, *e = (T *)M;
  const int64_t slot = blockIdx.x;
  const int K = (int)a.s.K, V = (int)a.s.V, heads = (int)a.s.heads;
  int64_t head;
  const cuda_piece piece = piece_of_slot(a.s, slot, &head);
  const int64_t key = (piece.row * heads + head) * K, value = (piece.row * heads + head) * V;
  const auto load_keys = [&](T *to, const void *from) {
    tile_load_async<CHUNK, TILE, THREADS>(to, (const T *)from + key, heads * K, piece.count, K, a.keys_aligned);
  };
  load_keys(k, a.c.k);
  load_keys(q, a.c.q);
  load_keys(p, a.c.p ? a.c.p : a.c.k);
  tile_load_async<CHUNK, TILE, THREADS>(v, (const T *)a.c.v + value, heads * V, piece.count, V, a.values_aligned);
  close_copies();
  if (threadIdx.x < 32) find_gates(a, piece, slot, head, G, beta);
  wait_for_copies<0>();
  __syncthreads();

  /* the first four warps have 16 rows of q k^T each, the others those of p k^T */
  const int row = warp_row(), column = warp_column();
  const bool feedback = threadIdx.x >= THREADS / 2;
  float score[CHUNK / 8][4] = {};
  tile_multiply<CHUNK, TILE, true>(score, (feedback ? p : q) + row * t::stride, t::stride, k, t::stride);
  tile_each<CHUNK>([&](int n, int at, int i, int j) {
    i += row;
    const double read = feedback ? a.c.after_decay ? G[i] : i ? G[i - 1] : 0 : G[i];
    const float factor = feedback ? 1 : a.c.scale * beta[j];
    score[n][at] = j < i + !feedback ? factor * decay(read - G[j]) * score[n][at] : 0;
  });
  __syncwarp(); /* a warp's rows of q are its own */
  if (feedback)
    tile_write<CHUNK>(M + row * MATRIX_STRIDE, MATRIX_STRIDE, score);
  else
    tile_write<CHUNK>(A + row * t::stride, t::stride, score);
  __syncthreads();
  find_resolvent(M, beta, R);
  for (int x = threadIdx.x * 2; x < MATRIX; x += THREADS * 2) {
    const int i = x / CHUNK, j = x % CHUNK;
    const float *from = R + i * MATRIX_STRIDE + j;
    store_pair(C + i * t::stride + j, j < i ? from[0] * beta[j] : 0, j + 1 < i ? from[1] * beta[j + 1] : 0);
  }
  __syncthreads();

  float error[HALF / 8][4], product[HALF / 8][4] = {}, o[HALF / 8][4] = {};
  tile_multiply<HALF, CHUNK, false>(product, C + row * t::stride, t::stride, v + column, t::stride);
  tile_read<HALF>(error, v + row * t::stride + column, t::stride);
  tile_each<HALF>([&](int n, int i, int, int) { error[n][i] -= product[n][i]; });
  tile_write<HALF>(e + row * t::stride + column, t::stride, error);
  __syncthreads();
  tile_multiply<HALF, CHUNK, false>(o, A + row * t::stride, t::stride, e + column, t::stride);
  write_rows((T *)a.c.o + value + row * heads * V + column, heads * V, piece.count - row, V - column, a.values_aligned,
             false, sheets, o);
  if (keeps)
    write_rows((T *)a.b.errors + (slot * CHUNK + row) * V + column, V, TILE_ROWS, V - column, a.values_aligned, false,
               sheets, error);

  if (!a.c.final_state) return; /* k^T (e^{G_n - G} beta e) */
  __syncthreads();
  tile_each<HALF>([&](int n, int at, int i, int) { error[n][at] *= decay(G[CHUNK - 1] - G[row + i]) * beta[row + i]; });
  tile_write<HALF>(A + row * t::stride + column, t::stride, error);
  __syncthreads();
  float state[1][HALF / 8][4] = {};
  const T *const keys[] = {k + row};
  tiles_multiply<1, HALF, CHUNK, true, false>(state, keys, t::stride, A + column, t::stride);
  tile_write<HALF>(a.c.final_state + ((piece.sequence * heads + head) * K + row) * V + column, V, K - row, V - column,
                   V % 2 == 0, false, state[0]);
}

/* ---- Backward ------------------------------------------------------------------------------------------------------- */

/* Of the float matrices A and L first hold what they are called, then A X and the paths, and y. to_score takes the place of do,
 * to_feedback that of e. */
template <class T>
static __global__ void __launch_bounds__(THREADS, sizeof(T) == 2 ? 2 : 1) go_back(const gradient_problem<T> x) {
  typedef one_chunk<T> t;
  extern __shared__ int4 shared[];
  __shared__ double G[CHUNK];
  __shared__ float beta[CHUNK];
  T *q = (T *)shared, *k = q + t::tile, *p = k + t::tile, *output_gradient = p + t::tile,
    *e = output_gradient + t::tile;
  float *A = (float *)(e + t::tile), *L = A + MATRIX_FLOATS, *X = L + MATRIX_FLOATS, *sheets = X;
  T *AX = (T *)A, *y = (T *)L, *to_score = output_gradient, *to_feedback = e;
  float(*paths)[CHUNK + 1] = (float(*)[CHUNK + 1]) A;
  const int64_t slot = blockIdx.x;
  const int K = (int)x.s.K, V = (int)x.s.V;
  int64_t head;
  const cuda_piece piece = piece_of_slot(x.s, slot, &head);
  const auto load = [&](T *to, const T *from, int stride, int rows, int columns) {
    tile_load_async<CHUNK, TILE, THREADS>(to, from, stride, rows, columns, x.aligned);
  };
  load(q, x.q_at(piece, head), x.q_stride, piece.count, K);
  load(k, x.k_at(piece, head), x.k_stride, piece.count, K);
  load(p, x.p_at(piece, head), x.k_stride, piece.count, K);
  load(output_gradient, x.output_gradient_at(piece, head), x.output_stride, x.output_rows(piece), V);
  load(e, x.errors + slot * CHUNK * V, V, piece.count, V);
  close_copies();
  if (threadIdx.x < CHUNK) {
    G[threadIdx.x] = x.G[slot * CHUNK + threadIdx.x];
    beta[threadIdx.x] = x.beta_at(slot)[threadIdx.x];
  }
  wait_for_copies<0>();
  __syncthreads();

  const int row = warp_row(), column = warp_column();
  float score[2][HALF / 8][4] = {}; /* A and L, as find_score_gradients has them */
  const T *const reads[] = {q + row * t::stride, p + row * t::stride};
  tiles_multiply<2, HALF, TILE, false, true>(score, reads, t::stride, k + column * t::stride, t::stride);
  tile_each<HALF>([&](int n, int at, int i, int j) {
    i += row;
    j += column;
    score[0][n][at] *= j <= i ? x.scale * decay(G[i] - G[j]) : 0;
    score[1][n][at] *= j < i ? decay(x.feedback_sum(G, i) - G[j]) : 0;
    A[i * MATRIX_STRIDE + j] = score[0][n][at];
    L[i * MATRIX_STRIDE + j] = beta[i] * score[1][n][at];
  });
  __syncthreads();
  invert(L, X);
  float product[HALF / 8][4] = {};
  for (int m = column; m < row + TILE_ROWS; m += TILE_ROWS) /* elsewhere A or X is zero */
    tile_multiply<HALF, TILE_ROWS, false>(product, A + row * MATRIX_STRIDE + m, MATRIX_STRIDE,
                                          X + m * MATRIX_STRIDE + column, MATRIX_STRIDE);
  __syncthreads();
  tile_write<HALF>(AX + row * t::stride + column, t::stride, product);
  __syncthreads();

  float values[1][HALF / 8][4] = {};
  const T *const outputs[] = {AX + row};
  tiles_multiply<1, HALF, CHUNK, true, false>(values, outputs, t::stride, output_gradient + column, t::stride);
  tile_write<HALF>(y + row * t::stride + column, t::stride, values[0]);
  const auto write = [&](T *to, int stride, int width, bool add, const float(&sum)[HALF / 8][4]) {
    T *place = to + (piece.row + row) * stride + head * width + column;
    if (to) write_rows(place, stride, piece.count - row, width - column, x.aligned, add, sheets, sum);
  };
  tile_each<HALF>([&](int n, int at, int i, int) { values[0][n][at] *= beta[row + i]; });
  write(x.dv, x.v_stride, V, x.add_v, values[0]);
  __syncthreads();

  float gradient[2][HALF / 8][4] = {}; /* F = do e^T, H = y e^T */
  const T *const written[] = {output_gradient + row * t::stride, y + row * t::stride};
  tiles_multiply<2, HALF, TILE, false, true>(gradient, written, t::stride, e + column * t::stride, t::stride);
  __syncthreads();
  tile_each<HALF>([&](int n, int at, int i, int j) {
    i += row;
    j += column;
    const float F = beta[j] * gradient[0][n][at], H = gradient[1][n][at], weight = beta[i] * beta[j] * H;
    if (i == j && i < piece.count && x.dbeta) put(x.dbeta + (piece.row + i) * x.s.heads + head, H, x.add_beta);
    paths[i][j] = j < i ? score[0][n][at] * F : 0;
    score[1][n][at] *= weight;
    gradient[0][n][at] = j <= i ? x.scale * decay(G[i] - G[j]) * F : 0;
    gradient[1][n][at] = j < i ? -decay(x.feedback_sum(G, i) - G[j]) * weight : 0;
  });
  tile_write<HALF>(to_score + row * t::stride + column, t::stride, gradient[0]);
  tile_write<HALF>(to_feedback + row * t::stride + column, t::stride, gradient[1]);
  __syncthreads();
  if (x.dg) {
    const int lag = x.after_decay ? 0 : 1; /* token i reads what token i - lag has decayed */
    tile_each<HALF>([&](int n, int at, int i, int j) {
      i += row - lag;
      j += column;
      if (j < i) paths[i][j] -= score[1][n][at];
    });
    __syncthreads();
    sum_paths<THREADS>(paths, [&](int token, float sum) {
      if (token < piece.count) put(x.dg + (piece.row + token) * x.s.heads + head, sum, x.add_g);
    });
  }

  float read[2][HALF / 8][4] = {}, dk[1][HALF / 8][4] = {}; /* read: dq, dp */
  const T *const rows[] = {to_score + row * t::stride, to_feedback + row * t::stride};
  const T *const scores[] = {to_score + row}, *const feedbacks[] = {to_feedback + row};
  tiles_multiply<2, HALF, CHUNK, false, false>(read, rows, t::stride, k + column, t::stride);
  tiles_multiply<1, HALF, CHUNK, true, false>(dk, scores, t::stride, q + column, t::stride);
  tiles_multiply<1, HALF, CHUNK, true, false>(dk, feedbacks, t::stride, p + column, t::stride);
  if (x.p == x.k) tile_each<HALF>([&](int n, int i, int, int) { dk[0][n][i] += read[1][n][i]; });
  write(x.dq, x.q_stride, K, x.add_q, read[0]);
  write(x.dk, x.k_stride, K, x.add_k, dk[0]);
  write(x.dp, x.k_stride, K, x.add_p, read[1]);
}

/* ---- Both ----------------------------------------------------------------------------------------------------------- */

template <class T> void cuda_scalar_forward_one_chunk(const pass &p, bool keeps) {
  static const char *what = "a scan over sequences of one chunk";
  constexpr int bytes = one_chunk<T>::forward_bytes;
  comba_cuda_note(cudaFuncSetAttribute(run_chunk<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
  run_chunk<T><<<(unsigned)p.s.slots, THREADS, bytes, comba_cuda_stream()>>>(p, keeps);
  comba_cuda_note(cudaGetLastError(), what);
}

template <class T> void cuda_scalar_backward_one_chunk(const gradient_problem<T> &x) {
  launch(go_back<T>, x, x.s.slots, THREADS, one_chunk<T>::backward_bytes);
}

template void cuda_scalar_forward_one_chunk<float>(const pass &, bool);
template void cuda_scalar_forward_one_chunk<bfloat16>(const pass &, bool);
template void cuda_scalar_backward_one_chunk<float>(const gradient_problem<float> &);
template void cuda_scalar_backward_one_chunk<bfloat16>(const gradient_problem<bfloat16> &);
