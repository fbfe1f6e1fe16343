/* Backward of the engine (cuda_scalar.h), after forward's chunks have run again. S is the state before a chunk, dS' the gradient of the
 * state after it, e the errors, y the gradient of beta e; the rest as in delta_rule_chunk.c. Four kernels:
 *   prepare      a slot:  A, L; y0 = (A X)^T do and W = X^T e^{G_n - G} k, where X = (I + L2)^-1 and L2_ij = beta_i L_ij
 *   go_back      a lane and head, 64 columns of V: dS' stays in registers from the last chunk to the first
 *                y = y0 + W dS';  dS = e^{G_n} dS' + q^T (scale e^G do) - p^T (beta e^P y)
 *   find_score_gradients  a slot: of q k^T and p k^T, from do e^T and y e^T; the paths between its tokens; dbeta
 *   find_key_gradients    a slot, 64 columns of K: dq, dk, dp, and the paths that begin or end in a state
 * Without delta y = A^T do + e^{G_n - G} k dS', v takes the place of e, and nothing is fed back.
 * Products round their operands to T and sum in float. What cancels is kept in float until it has: keys that repeat make A X and W small
 * differences of large sums, so A X is multiplied in float, and X for W is split into two bfloat16 each. */
#include <type_traits>

#include "scan/cuda_scalar_private.h"
#include "scan/cuda_tile.h"

enum { BLOCK = 64, THREADS = 256, HALF = 32, PIECE = 32 };
enum { FROM_Q, FROM_P, TO_STATE, ENDS }; /* paths that begin or end in a state, by token */

template <class T> struct problem {
  shape s;
  int64_t blocks; /* of 64 columns of K */
  int64_t q_group, k_group, v_group, q_stride, k_stride, v_stride;
  float scale;
  bool after_decay, aligned;
  const double *G;   /* (slots, CHUNK) */
  const float *beta; /* (slots, CHUNK) */
  const T *q, *k, *p, *v, *output_gradient;
  const T *states, *errors;
  /* what the kernels pass on */
  T *A, *L;                  /* (slots, CHUNK, CHUNK): scores with decay, without beta */
  T *W, *y;                  /* (slots, CHUNK, K or V) */
  T *state_gradients;        /* (slots, K, V): dS' */
  T *to_score, *to_feedback; /* (slots, CHUNK, CHUNK) */
  float *between;            /* (slots, CHUNK): over paths between tokens that pass a gate */
  float *ends, *across;      /* (slots, blocks, ENDS, CHUNK); (slots, blocks): from S to S' */
  /* results; of what several value heads share, (slots, CHUNK, width) of floats first */
  T *dq, *dk, *dp, *dv;
  float *shared_dq, *shared_dk, *shared_dp, *shared_dv;
  float *dbeta, *dg, *initial_gradient;
  const float *final_gradient;
  bool add_q, add_k, add_p, add_v, add_beta, add_g, add_state;

  __device__ const T *q_at(const cuda_piece &p, int64_t head) const {
    return q + p.row * q_stride + head / q_group * s.K;
  }
  __device__ const T *k_at(const cuda_piece &p, int64_t head) const {
    return k + p.row * k_stride + head / k_group * s.K;
  }
  __device__ const T *p_at(const cuda_piece &piece, int64_t head) const {
    return p + piece.row * k_stride + head / k_group * s.K;
  }
  __device__ int64_t output_stride() const {
    return s.heads * s.V;
  }
  __device__ const T *output_gradient_at(const cuda_piece &p, int64_t head) const {
    return output_gradient + (p.row * s.heads + head) * s.V;
  }
  /* Rows of the output's gradient: none where it is absent. */
  __device__ int output_rows(const cuda_piece &p) const {
    return output_gradient ? p.count : 0;
  }
  /* The decay exponent P of feedback at token i. */
  __device__ double feedback_sum(const double *G, int i) const {
    return after_decay ? G[i] : (i ? G[i - 1] : 0);
  }
};

/* ---- Prepare -------------------------------------------------------------------------------------------------------- */

/* What a warp of eight has of a (64, 64): 16 rows, 32 columns. */
static __device__ inline int warp_row() {
  return threadIdx.x / 32 % 4 * TILE_ROWS;
}
static __device__ inline int warp_column() {
  return threadIdx.x / 128 * HALF;
}

enum { MATRIX_STRIDE = tile_stride<float, CHUNK> };

/* Pairs of inverted blocks on the diagonal become one of twice the side:
 * [[A,0],[M,D]]^-1 = [[A^-1,0],[-D^-1 M A^-1, D^-1]]. A warp has 16 rows and 8 columns; M A^-1 takes the place of M. */
template <int side> static __device__ void merge_inverses(float *L, float *X) {
  constexpr int per_pair = side / TILE_ROWS * side / 8, jobs = CHUNK / 2 / side * per_pair;
  const int warp = threadIdx.x / 32, first = warp / per_pair * 2 * side;
  const int row = first + side + warp % per_pair / (side / 8) * TILE_ROWS, column = warp % (side / 8) * 8;
  float product[1][4] = {};
  if (warp < jobs)
    tile_multiply<8, side, false>(product, L + row * MATRIX_STRIDE + first, MATRIX_STRIDE,
                                  X + first * MATRIX_STRIDE + first + column, MATRIX_STRIDE);
  __syncthreads();
  float *M = L + (first + side) * MATRIX_STRIDE + first + column;
  if (warp < jobs)
    tile_write<8>(L + row * MATRIX_STRIDE + first + column, MATRIX_STRIDE, TILE_ROWS, 8, true, false, product);
  __syncthreads();
  if (warp < jobs) {
    float corner[1][4] = {};
    tile_multiply<8, side, false>(corner, X + row * MATRIX_STRIDE + first + side, MATRIX_STRIDE, M, MATRIX_STRIDE);
    for (int i = 0; i < 4; i++) corner[0][i] = -corner[0][i];
    tile_write<8>(X + row * MATRIX_STRIDE + first + column, MATRIX_STRIDE, TILE_ROWS, 8, true, false, corner);
  }
  __syncthreads();
}

/* X = (I + L)^-1 of strictly lower L, which is lost: blocks of 16 on the diagonal by substitution, a thread a column, then pairs of them.
 * The block of threads is in step before and after. */
static __device__ void invert(float *L, float *X) {
  for (int i = threadIdx.x; i < CHUNK * MATRIX_STRIDE; i += THREADS) X[i] = 0;
  __syncthreads();
  if (threadIdx.x < CHUNK) {
    const int column = threadIdx.x % TILE_ROWS, corner = threadIdx.x / TILE_ROWS * TILE_ROWS * (MATRIX_STRIDE + 1);
    float x[TILE_ROWS];
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
      float sum = i == column;
#pragma unroll
      for (int m = 0; m < i; m++) sum -= L[corner + i * MATRIX_STRIDE + m] * x[m];
      x[i] = sum;
      X[corner + i * MATRIX_STRIDE + column] = sum;
    }
  }
  __syncthreads();
  merge_inverses<16>(L, X);
  merge_inverses<32>(L, X);
}

template <class T> struct prepare_tiles {
  static constexpr int stride = tile_stride<T, BLOCK>, tile = CHUNK * stride, count = 6;
  static constexpr int bytes = count * tile * (int)sizeof(T) + 3 * CHUNK * MATRIX_STRIDE * (int)sizeof(float);
};

template <class T, bool delta> static __global__ void __launch_bounds__(THREADS) prepare(const problem<T> x) {
  typedef prepare_tiles<T> t;
  extern __shared__ int4 shared[];
  __shared__ double G[CHUNK];
  __shared__ float beta[CHUNK];
  float *A = (float *)shared, *L = A + CHUNK * MATRIX_STRIDE, *X = L + CHUNK * MATRIX_STRIDE;
  T *tiles = (T *)(X + CHUNK * MATRIX_STRIDE);
  const int64_t slot = blockIdx.x, K = x.s.K, V = x.s.V;
  int64_t head;
  const cuda_piece piece = piece_of_slot(x.s, slot, &head);
  if (!piece.count) return;
  const int row = warp_row(), column = warp_column();

  /* three tiles of 64 columns at a time: q, k, p */
  const auto load_keys = [&](int64_t block) {
    T *to = tiles + block % 2 * 3 * t::tile;
    const int64_t first = block * BLOCK;
    if (block < x.blocks) {
      tile_load_async<CHUNK, BLOCK, THREADS>(to, x.q_at(piece, head) + first, x.q_stride, piece.count, K - first,
                                             x.aligned);
      tile_load_async<CHUNK, BLOCK, THREADS>(to + t::tile, x.k_at(piece, head) + first, x.k_stride, piece.count,
                                             K - first, x.aligned);
      if (delta)
        tile_load_async<CHUNK, BLOCK, THREADS>(to + 2 * t::tile, x.p_at(piece, head) + first, x.k_stride, piece.count,
                                               K - first, x.aligned);
    }
    close_copies();
  };
  load_keys(0);
  if (threadIdx.x < CHUNK) {
    G[threadIdx.x] = x.G[slot * CHUNK + threadIdx.x];
    beta[threadIdx.x] = x.beta[slot * CHUNK + threadIdx.x];
  }
  float score[delta ? 2 : 1][HALF / 8][4] = {};
  for (int64_t block = 0; block < x.blocks; block++) {
    load_keys(block + 1);
    wait_for_copies<1>();
    __syncthreads();
    const T *q = tiles + block % 2 * 3 * t::tile, *k = q + t::tile + column * t::stride;
    const T *const left[] = {q + row * t::stride, q + 2 * t::tile + row * t::stride};
    tiles_multiply<delta ? 2 : 1, HALF, BLOCK, false, true>(score, (const T *const(&)[delta ? 2 : 1])left, t::stride, k,
                                                            t::stride);
    __syncthreads();
  }

  /* then tiles of do, and of k for W, while the matrix is inverted: each takes the place of the one six before */
  const int64_t values = (V + BLOCK - 1) / BLOCK, all = values + (delta ? x.blocks : 0);
  const auto load_next = [&](int64_t i) {
    T *to = tiles + i % t::count * t::tile;
    if (i < values)
      tile_load_async<CHUNK, BLOCK, THREADS>(to, x.output_gradient_at(piece, head) + i * BLOCK, x.output_stride(),
                                             x.output_rows(piece), V - i * BLOCK, x.aligned);
    else if (i < all)
      tile_load_async<CHUNK, BLOCK, THREADS>(to, x.k_at(piece, head) + (i - values) * BLOCK, x.k_stride, piece.count,
                                             K - (i - values) * BLOCK, x.aligned);
    close_copies();
  };
  for (int i = 0; i < t::count - 1; i++) load_next(i);

  tile_each<HALF>([&](int n, int at, int i, int j) {
    i += row;
    j += column;
    const float a = j <= i ? x.scale * decay(G[i] - G[j]) * score[0][n][at] : 0;
    A[i * MATRIX_STRIDE + j] = score[0][n][at] = a;
    if (!delta) return;
    const float l = j < i ? decay(x.feedback_sum(G, i) - G[j]) * score[delta][n][at] : 0;
    L[i * MATRIX_STRIDE + j] = beta[i] * l;
    score[delta][n][at] = l;
  });
  const int64_t corner = slot * MATRIX + row * CHUNK + column;
  tile_write<HALF>(x.A + corner, CHUNK, TILE_ROWS, HALF, true, false, score[0]);
  if (delta) tile_write<HALF>(x.L + corner, CHUNK, TILE_ROWS, HALF, true, false, score[delta]);
  __syncthreads();

  /* AX and the parts of e^{G_n - G} X, over A and L, which are no longer needed */
  T *AX = (T *)shared, *scaled = AX + CHUNK * t::stride, *rest = scaled + CHUNK * t::stride;
  float product[HALF / 8][4] = {};
  if (delta) {
    invert(L, X);
    tile_multiply<HALF, CHUNK, false>(product, A + row * MATRIX_STRIDE, MATRIX_STRIDE, X + column, MATRIX_STRIDE);
    __syncthreads();
    for (int at = threadIdx.x; at < MATRIX; at += THREADS) {
      const int i = at / CHUNK, j = at % CHUNK;
      const float value = decay(G[CHUNK - 1] - G[i]) * X[i * MATRIX_STRIDE + j];
      store(scaled + i * t::stride + j, value);
      if (sizeof(T) < sizeof(float)) store(rest + i * t::stride + j, value - load(scaled + i * t::stride + j));
    }
  } else {
    __syncthreads();
    tile_each<HALF>([&](int n, int i, int, int) { product[n][i] = score[0][n][i]; });
  }
  tile_write<HALF>(AX + row * t::stride + column, t::stride, TILE_ROWS, HALF, true, false, product);

  for (int64_t i = 0; i < all; i++) {
    wait_for_copies<t::count - 2>();
    __syncthreads(); /* also: all have read the tile that the next one replaces */
    load_next(i + t::count - 1);
    const T *right = tiles + i % t::count * t::tile + column;
    float sum[1][HALF / 8][4] = {};
    const auto add = [&](const T *left) {
      const T *const transposed[] = {left + row};
      tiles_multiply<1, HALF, CHUNK, true, false>(sum, transposed, t::stride, right, t::stride);
    };
    if (i < values) {
      const int64_t first = i * BLOCK + column;
      add(AX);
      tile_write<HALF>(x.y + (slot * CHUNK + row) * V + first, V, piece.count - row, V - first, x.aligned, false,
                       sum[0]);
    } else {
      const int64_t first = (i - values) * BLOCK + column;
      add(scaled);
      if (sizeof(T) < sizeof(float)) add(rest);
      tile_write<HALF>(x.W + (slot * CHUNK + row) * K + first, K, piece.count - row, K - first, x.aligned, false,
                       sum[0]);
    }
  }
}

/* ---- The gradient of the state -------------------------------------------------------------------------------------- */

/* K: columns of keys, padded. A warp has `tiles` times 16 rows of the state and `columns` of its columns. */
template <class T, int K> struct state_tiles {
  static constexpr int warps = THREADS / 32, groups = K / TILE_ROWS < warps ? K / TILE_ROWS : warps;
  static constexpr int tiles = K / TILE_ROWS / groups, columns = BLOCK * groups / warps;
  static constexpr int key_stride = tile_stride<T, K>, stride = tile_stride<T, BLOCK>;
  static constexpr int bytes = (K * stride + 2 * CHUNK * key_stride + CHUNK * stride) * (int)sizeof(T);
  static constexpr int blocks = 2 * (bytes + 2048) <= 227 * 1024 ? 2 : 1; /* at a time on a processor */
};

/* Copies of q, W (or k) and p follow one another through two buffers, each queued as soon as the one before it in its buffer has been
 * read: q and W of a chunk before it begins, p over q. So the buffers change roles from chunk to chunk. */
template <class T, int K, bool delta>
static __global__ void __launch_bounds__(THREADS, state_tiles<T, K>::blocks) go_back(const problem<T> x) {
  typedef state_tiles<T, K> t;
  extern __shared__ int4 shared[];
  T *copy = (T *)shared, *values = copy + K * t::stride;
  T *first = values + CHUNK * t::stride, *second = first + CHUNK * t::key_stride;
  const int64_t blocks = (x.s.V + BLOCK - 1) / BLOCK, V = x.s.V, batch = x.s.lanes * x.s.heads;
  const int64_t place = blockIdx.x / blocks, lane = place / x.s.heads, head = place % x.s.heads;
  const int64_t first_value = blockIdx.x % blocks * BLOCK;
  const int row = warp_row(), column = warp_column();                        /* of y */
  const int state_row = threadIdx.x / 32 % t::groups * t::tiles * TILE_ROWS; /* of the state */
  const int state_column = threadIdx.x / 32 / t::groups * t::columns;
  float state[t::tiles][t::columns / 8][4] = {};

  const auto load_rows = [&](T *to, const T *from, int64_t stride, const cuda_piece &piece) {
    tile_load_async<CHUNK, K, THREADS>(to, from, stride, piece.count, x.s.K, x.aligned);
    close_copies();
  };
  const auto load_q = [&](T *to, const cuda_piece &piece) { load_rows(to, x.q_at(piece, head), x.q_stride, piece); };
  const auto load_reads = [&](T *to, const cuda_piece &piece, int64_t slot) {
    if (delta)
      load_rows(to, x.W + slot * CHUNK * x.s.K, x.s.K, piece);
    else
      load_rows(to, x.k_at(piece, head), x.k_stride, piece);
  };
  /* this thread's part of do, loaded ahead: it is scaled on its way into the tile */
  constexpr int vector = 16 / sizeof(T), vectors = CHUNK * BLOCK / vector / THREADS;
  __align__(16) T ahead[vectors][vector];
  const auto load_ahead = [&](const cuda_piece &piece) {
#pragma unroll
    for (int n = 0; n < vectors; n++) {
      const int at = (n * THREADS + threadIdx.x) * vector, i = at / BLOCK;
      const int64_t j = first_value + at % BLOCK;
      const bool there = i < x.output_rows(piece) && j < V;
      const T *from = there ? x.output_gradient_at(piece, head) + i * x.output_stride() + j : NULL;
      if (x.aligned) {
        *(int4 *)ahead[n] = there ? *(const int4 *)from : make_int4(0, 0, 0, 0);
      } else {
#pragma unroll
        for (int e = 0; e < vector; e++) ahead[n][e] = there && j + e < V ? from[e] : (T)0.0f;
      }
    }
  };
  const auto state_each = [&](auto f) {
#pragma unroll
    for (int m = 0; m < t::tiles; m++) f(state[m], state_row + m * TILE_ROWS, state_column);
  };

  int64_t slot = (x.s.steps - 1) * batch + place;
  cuda_piece piece = piece_at(x.s, x.s.steps - 1, lane);
  load_q(first, piece);
  load_reads(second, piece, slot);
  load_ahead(piece);
  for (int64_t step = x.s.steps - 1; step >= 0; step--) {
    const double *G = x.G + slot * CHUNK;
    const int64_t previous_slot = slot - batch;
    const cuda_piece previous = step ? piece_at(x.s, step - 1, lane) : piece;
    const int64_t state_at = ((piece.sequence * x.s.heads + head) * x.s.K) * V + first_value;
    const float *final_gradient = x.final_gradient;
    if (piece.last)
      state_each([&](auto &part, int i, int j) {
        tile_read<t::columns>(part, final_gradient + state_at + i * V + j, V, final_gradient ? x.s.K - i : 0,
                              V - first_value - j, x.aligned);
      });
    state_each([&](auto &part, int i, int j) {
      tile_write<t::columns>(copy + i * t::stride + j, t::stride, TILE_ROWS, t::columns, true, false, part);
    });
#pragma unroll
    for (int n = 0; n < vectors; n++) {
      const int at = (n * THREADS + threadIdx.x) * vector, i = at / BLOCK;
      const float factor = x.scale * decay(G[i]);
#pragma unroll
      for (int e = 0; e < vector; e++) store(&ahead[n][e], load(&ahead[n][e]) * factor);
      *(int4 *)(values + i * t::stride + at % BLOCK) = *(const int4 *)ahead[n];
    }
    T *y_to = x.y + (slot * CHUNK + row) * V + first_value + column;
    float y[HALF / 8][4];
    tile_read<HALF>(y, y_to, V, piece.count - row, V - first_value - column, x.aligned);

    wait_for_copies<1>();
    __syncthreads();
    tile_copy_out<K, BLOCK, THREADS>(x.state_gradients + slot * x.s.K * V + first_value, copy, V, x.s.K,
                                     V - first_value, x.aligned);
    const float total = decay(G[CHUNK - 1]);
    state_each(
        [&](auto &part, int, int) { tile_each<t::columns>([&](int n, int i, int, int) { part[n][i] *= total; }); });
    const auto add_to_state = [&](const T *rows) {
      const T *left[t::tiles];
#pragma unroll
      for (int m = 0; m < t::tiles; m++) left[m] = rows + state_row + m * TILE_ROWS;
      tiles_multiply<t::tiles, t::columns, CHUNK, true, false>(state, left, t::key_stride, values + state_column,
                                                               t::stride);
    };
    add_to_state(first);

    wait_for_copies<0>();
    __syncthreads();
    if (delta)
      load_rows(first, x.p_at(piece, head), x.k_stride, piece);
    else if (step)
      load_q(first, previous);
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int i = row + threadIdx.x % 32 / 4 + half * 8;
      factor[half] = delta ? -decay(x.feedback_sum(G, i)) : decay(G[CHUNK - 1] - G[i]);
    }
    const T *left = second + row * t::key_stride, *right = copy + column;
    if (delta) {
      tile_multiply<HALF, K, false>(y, left, t::key_stride, right, t::stride);
      tile_write<HALF>(y_to, V, piece.count - row, V - first_value - column, x.aligned, false, y);
    } else {
      float product[HALF / 8][4] = {};
      tile_multiply<HALF, K, false>(product, left, t::key_stride, right, t::stride);
      tile_each<HALF>([&](int n, int i, int, int) { y[n][i] += factor[i / 2] * product[n][i]; });
    }
    if (delta) { /* dv = beta y, from y while it is in float; then what p reads */
      const float *beta = x.beta + slot * CHUNK + row + threadIdx.x % 32 / 4;
      tile_each<HALF>([&](int n, int i, int, int) { y[n][i] *= beta[i / 2 * 8]; });
    }
    if (x.shared_dv)
      tile_write<HALF>(x.shared_dv + (slot * CHUNK + row) * V + first_value + column, V, piece.count - row,
                       V - first_value - column, x.aligned, false, y);
    else if (x.dv)
      tile_write<HALF>(x.dv + ((piece.row + row) * x.s.heads + head) * V + first_value + column, x.output_stride(),
                       piece.count - row, V - first_value - column, x.aligned, x.add_v, y);

    if (step) load_ahead(previous);
    if (delta) {
      tile_each<HALF>([&](int n, int i, int, int) { y[n][i] *= factor[i / 2]; });
      tile_write<HALF>(values + row * t::stride + column, t::stride, TILE_ROWS, HALF, true, false, y);
      wait_for_copies<0>();
      __syncthreads();
      if (step) load_q(second, previous);
      add_to_state(first);
      __syncthreads();
      if (step) load_reads(first, previous, previous_slot);
      T *swap = first;
      first = second;
      second = swap;
    } else {
      __syncthreads();
      if (step) load_reads(second, previous, previous_slot);
    }
    if (piece.first && x.initial_gradient)
      state_each([&](auto &part, int i, int j) {
        tile_write<t::columns>(x.initial_gradient + state_at + i * V + j, V, x.s.K - i, V - first_value - j, x.aligned,
                               x.add_state, part);
      });
    slot = previous_slot;
    piece = previous;
  }
}

/* ---- Gradients of scores -------------------------------------------------------------------------------------------- */

enum { SCORE_THREADS = 128 }; /* a warp has 16 rows and all columns of a (64, 64) */

template <class T, bool delta> struct score_tiles {
  static constexpr int stride = tile_stride<T, BLOCK>, tile = CHUNK * stride, count = delta ? 3 : 2;
  static constexpr int bytes = 2 * count * tile * (int)sizeof(T);
};

/* between[t] = the sum of paths[i][j] over j < t <= i: down the columns from below, then along the rows; two threads share a column, two a row.
 * paths is lost. */
static __device__ void sum_paths(float (&paths)[CHUNK][CHUNK + 1], float *between) {
  constexpr int parts = 2, part = CHUNK / parts;
  __shared__ float sums[parts][CHUNK];
  const int j = threadIdx.x % CHUNK, mine = threadIdx.x / CHUNK;
  float sum = 0;
  for (int i = mine * part; i < (mine + 1) * part; i++) sum += paths[i][j];
  sums[mine][j] = sum;
  __syncthreads();
  sum = 0;
  for (int later = mine + 1; later < parts; later++) sum += sums[later][j];
  for (int i = (mine + 1) * part - 1; i >= mine * part; i--) paths[i][j] = sum += paths[i][j];
  __syncthreads();
  const int t = threadIdx.x / 2;
  sum = 0;
  for (int column = threadIdx.x % 2; column < t; column += 2) sum += paths[t][column];
  sum += __shfl_xor_sync(~0u, sum, 1);
  if (threadIdx.x % 2 == 0) between[t] = sum;
}

/* F = do e^T and H = y e^T. A path from token j to the output of token i weighs A_ij beta_j F_ij; one to the feedback of token i weighs
 * -L_ij beta_i beta_j H_ij, and passes the gates that decay what token i reads. */
template <class T, bool delta>
static __global__ void __launch_bounds__(SCORE_THREADS) find_score_gradients(const problem<T> x) {
  typedef score_tiles<T, delta> t;
  constexpr int products = delta ? 2 : 1;
  extern __shared__ int4 shared[];
  __shared__ float paths[CHUNK][CHUNK + 1];
  __shared__ double G[CHUNK];
  __shared__ float beta[CHUNK];
  T *tiles = (T *)shared;
  const int64_t slot = blockIdx.x, V = x.s.V;
  int64_t head;
  const cuda_piece piece = piece_of_slot(x.s, slot, &head);
  if (!piece.count) return;
  const int row = threadIdx.x / 32 * TILE_ROWS;
  const T *written = delta ? x.errors + slot * CHUNK * V : x.v + piece.row * x.v_stride + head / x.v_group * V;

  const auto load_values = [&](int64_t block) {
    T *to = tiles + block % 2 * t::count * t::tile;
    const int64_t first = block * BLOCK;
    if (first < V) {
      tile_load_async<CHUNK, BLOCK, SCORE_THREADS>(to, written + first, delta ? V : x.v_stride, piece.count, V - first,
                                                   x.aligned);
      tile_load_async<CHUNK, BLOCK, SCORE_THREADS>(to + t::tile, x.output_gradient_at(piece, head) + first,
                                                   x.output_stride(), x.output_rows(piece), V - first, x.aligned);
      if (delta)
        tile_load_async<CHUNK, BLOCK, SCORE_THREADS>(to + 2 * t::tile, x.y + slot * CHUNK * V + first, V, piece.count,
                                                     V - first, x.aligned);
    }
    close_copies();
  };
  load_values(0);
  if (threadIdx.x < CHUNK) {
    G[threadIdx.x] = x.G[slot * CHUNK + threadIdx.x];
    beta[threadIdx.x] = x.beta[slot * CHUNK + threadIdx.x];
  }
  float gradient[products][CHUNK / 8][4] = {};
  for (int64_t block = 0; block * BLOCK < V; block++) {
    load_values(block + 1);
    wait_for_copies<1>();
    __syncthreads();
    const T *right = tiles + block % 2 * t::count * t::tile, *left[products];
#pragma unroll
    for (int m = 0; m < products; m++) left[m] = right + (1 + m) * t::tile + row * t::stride;
    tiles_multiply<products, CHUNK, BLOCK, false, true>(gradient, left, t::stride, right, t::stride);
    __syncthreads();
  }

  const int64_t corner = slot * MATRIX + row * CHUNK;
  float score[CHUNK / 8][4];
  tile_read<CHUNK>(score, x.A + corner, CHUNK, TILE_ROWS, CHUNK, true);
  tile_each<CHUNK>([&](int n, int at, int i, int j) {
    i += row;
    const float F = beta[j] * gradient[0][n][at];
    paths[i][j] = j < i ? score[n][at] * F : 0;
    gradient[0][n][at] = j <= i ? x.scale * decay(G[i] - G[j]) * F : 0;
  });
  tile_write<CHUNK>(x.to_score + corner, CHUNK, TILE_ROWS, CHUNK, true, false, gradient[0]);
  __syncthreads();
  if (delta) {
    const int lag = x.after_decay ? 0 : 1; /* token i reads what token i - lag has decayed */
    tile_read<CHUNK>(score, x.L + corner, CHUNK, TILE_ROWS, CHUNK, true);
    tile_each<CHUNK>([&](int n, int at, int i, int j) {
      i += row;
      const float H = gradient[products - 1][n][at], weight = beta[i] * beta[j] * H;
      if (i == j && i < piece.count && x.dbeta) put(x.dbeta + (piece.row + i) * x.s.heads + head, H, x.add_beta);
      if (j < i - lag) paths[i - lag][j] -= score[n][at] * weight;
      gradient[products - 1][n][at] = j < i ? -decay(x.feedback_sum(G, i) - G[j]) * weight : 0;
    });
    tile_write<CHUNK>(x.to_feedback + corner, CHUNK, TILE_ROWS, CHUNK, true, false, gradient[products - 1]);
    __syncthreads();
  }
  sum_paths(paths, x.between + slot * CHUNK);
}

/* ---- Gradients of keys ---------------------------------------------------------------------------------------------- */

template <class T, bool delta> struct key_tiles {
  static constexpr int threads = 128;
  static constexpr int stride = tile_stride<T, PIECE>, tile = BLOCK * stride, count = delta ? 5 : 4;
  static constexpr int block_stride = tile_stride<T, BLOCK>, block_tile = CHUNK * block_stride;
  static constexpr int loop_size = 2 * count * tile, end_size = (delta ? 5 : 3) * block_tile;
  static constexpr int bytes = (loop_size > end_size ? loop_size : end_size) * (int)sizeof(T);
};

/* ends = sums over the block's columns of what goes from a state to tokens, or from tokens to the state after them: a row's product with
 * `keys` (64, 64) in shared memory. */
template <int stride, class T>
static __device__ void find_ends(const float (&sum)[BLOCK / 8][4], const T *keys, float *ends) {
  float part[2] = {0, 0};
  tile_each<BLOCK>(
      [&](int n, int i, int row, int column) { part[i / 2] += sum[n][i] * load(keys + row * stride + column); });
#pragma unroll
  for (int half = 0; half < 2; half++) {
    part[half] += __shfl_xor_sync(~0u, part[half], 1);
    part[half] += __shfl_xor_sync(~0u, part[half], 2);
    if (threadIdx.x % 4 == 0) ends[threadIdx.x % 32 / 4 + half * 8] = part[half];
  }
}

/* Of 64 columns of K: first from the states, over pieces of V, then from the tokens of the chunk. */
template <class T, bool delta>
static __global__ void __launch_bounds__(128, sizeof(T) == 2 ? 3 : 2) find_key_gradients(const problem<T> x) {
  typedef key_tiles<T, delta> t;
  constexpr int reads = delta ? 2 : 1;
  extern __shared__ int4 shared[];
  T *tiles = (T *)shared;
  const int64_t slot = blockIdx.x / x.blocks, block = blockIdx.x % x.blocks, V = x.s.V, first_key = block * BLOCK;
  const int64_t keys = x.s.K - first_key;
  int64_t head;
  const cuda_piece piece = piece_of_slot(x.s, slot, &head);
  if (!piece.count) return;
  const int row = threadIdx.x / 32 * TILE_ROWS;
  const T *written = delta ? x.errors + slot * CHUNK * V : x.v + piece.row * x.v_stride + head / x.v_group * V;

  /* S and dS' (64 of K, 32 of V), e, do, y (64 tokens, 32 of V) */
  const auto load_piece = [&](int64_t first, int half) {
    T *to = tiles + half * t::count * t::tile;
    const int64_t columns = V - first, state = (slot * x.s.K + first_key) * V + first;
    const auto load = [&](const T *from, int64_t stride, int64_t rows) {
      tile_load_async<BLOCK, PIECE, t::threads>(to, from, stride, rows, columns, x.aligned);
      to += t::tile;
    };
    if (columns > 0) {
      load(x.states + state, V, keys);
      load(x.state_gradients + state, V, keys);
      load(written + first, delta ? V : x.v_stride, piece.count);
      load(x.output_gradient_at(piece, head) + first, x.output_stride(), x.output_rows(piece));
      if (delta) load(x.y + slot * CHUNK * V + first, V, piece.count);
    }
    close_copies();
  };
  float read[reads][BLOCK / 8][4] = {}, dk[1][BLOCK / 8][4] = {}, across = 0; /* read: dq, dp */
  load_piece(0, 0);
  for (int64_t first = 0, half = 0; first < V; first += PIECE, half ^= 1) {
    load_piece(first + PIECE, !half);
    wait_for_copies<1>();
    __syncthreads();
    const T *states = tiles + half * t::count * t::tile, *gradients = states + t::tile;
    const T *const errors[] = {gradients + t::tile + row * t::stride}, *left[reads];
#pragma unroll
    for (int m = 0; m < reads; m++) left[m] = errors[0] + (1 + m) * t::tile;
    tiles_multiply<reads, BLOCK, PIECE, false, true>(read, left, t::stride, states, t::stride);
    tiles_multiply<1, BLOCK, PIECE, false, true>(dk, errors, t::stride, gradients, t::stride);
#pragma unroll 4
    for (int i = threadIdx.x; i < BLOCK * PIECE / 2; i += t::threads) {
      const int at = i / (PIECE / 2) * t::stride + i % (PIECE / 2) * 2;
      const float2 a = load_pair(states + at), b = load_pair(gradients + at);
      across += a.x * b.x + a.y * b.y;
    }
    __syncthreads();
  }

  T *q = tiles, *k = q + t::block_tile, *to_score = k + t::block_tile, *p = to_score + t::block_tile;
  T *to_feedback = p + t::block_tile;
  const auto load_block = [&](T *to, const T *from, int64_t stride, int64_t rows, int64_t columns, bool aligned) {
    tile_load_async<CHUNK, BLOCK, t::threads>(to, from, stride, rows, columns, aligned);
  };
  load_block(q, x.q_at(piece, head) + first_key, x.q_stride, piece.count, keys, x.aligned);
  load_block(k, x.k_at(piece, head) + first_key, x.k_stride, piece.count, keys, x.aligned);
  load_block(to_score, x.to_score + slot * MATRIX, CHUNK, CHUNK, CHUNK, true);
  if (delta) {
    load_block(p, x.p_at(piece, head) + first_key, x.k_stride, piece.count, keys, x.aligned);
    load_block(to_feedback, x.to_feedback + slot * MATRIX, CHUNK, CHUNK, CHUNK, true);
  }
  close_copies();
  const double *G = x.G + slot * CHUNK;
  const double end = G[CHUNK - 1];
  float in[2], fed[2], out[2]; /* of this lane's two rows */
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int i = row + threadIdx.x % 32 / 4 + half * 8;
    const float beta = delta ? x.beta[slot * CHUNK + i] : 1;
    in[half] = x.scale * decay(G[i]);
    fed[half] = -beta * decay(x.feedback_sum(G, i));
    out[half] = beta * decay(end - G[i]);
  }
  tile_each<BLOCK>([&](int n, int i, int, int) {
    read[0][n][i] *= in[i / 2];
    if (delta) read[reads - 1][n][i] *= fed[i / 2];
    dk[0][n][i] *= out[i / 2];
  });
  across = block_sum(across) * decay(end);
  if (!threadIdx.x) x.across[blockIdx.x] = across;
  wait_for_copies<0>();
  __syncthreads();
  float *ends = x.ends + blockIdx.x * ENDS * CHUNK + row;
  find_ends<t::block_stride>(read[0], q + row * t::block_stride, ends + FROM_Q * CHUNK);
  find_ends<t::block_stride>(dk[0], k + row * t::block_stride, ends + TO_STATE * CHUNK);
  if (delta) find_ends<t::block_stride>(read[reads - 1], p + row * t::block_stride, ends + FROM_P * CHUNK);

  const T *left[reads], *const score_columns[] = {to_score + row}, *const feedback_columns[] = {to_feedback + row};
#pragma unroll
  for (int m = 0; m < reads; m++) left[m] = to_score + 2 * m * t::block_tile + row * t::block_stride;
  tiles_multiply<reads, BLOCK, CHUNK, false, false>(read, left, t::block_stride, k, t::block_stride);
  tiles_multiply<1, BLOCK, CHUNK, true, false>(dk, score_columns, t::block_stride, q, t::block_stride);
  if (delta) tiles_multiply<1, BLOCK, CHUNK, true, false>(dk, feedback_columns, t::block_stride, p, t::block_stride);
  if (delta && x.p == x.k) tile_each<BLOCK>([&](int n, int i, int, int) { dk[0][n][i] += read[reads - 1][n][i]; });

  const auto write = [&](T *to, float *shared_to, int64_t stride, bool add, const float(&sum)[BLOCK / 8][4]) {
    if (shared_to)
      tile_write<BLOCK>(shared_to + (slot * CHUNK + row) * x.s.K + first_key, x.s.K, piece.count - row, keys, x.aligned,
                        false, sum);
    else if (to)
      tile_write<BLOCK>(to + (piece.row + row) * stride + head * x.s.K + first_key, stride, piece.count - row, keys,
                        x.aligned, add, sum);
  };
  write(x.dq, x.shared_dq, x.q_stride, x.add_q, read[0]);
  write(x.dk, x.shared_dk, x.k_stride, x.add_k, dk[0]);
  if (delta) write(x.dp, x.shared_dp, x.k_stride, x.add_p, read[reads - 1]);
}

/* dg: of the paths that pass a gate; a thread a token. */
template <class T> static __global__ void find_gate_gradients(const problem<T> x) {
  __shared__ float from[CHUNK], to[CHUNK];
  const int64_t slot = blockIdx.x, first = slot * x.blocks;
  int64_t head;
  const cuda_piece piece = piece_of_slot(x.s, slot, &head);
  if (!piece.count) return;
  const int t = threadIdx.x, fed = t + (x.after_decay ? 0 : 1);
  float sum = 0, read = 0, written = 0;
  for (int64_t block = first; block < first + x.blocks; block++) {
    const float *ends = x.ends + block * ENDS * CHUNK;
    sum += x.across[block];
    read += ends[FROM_Q * CHUNK + t] + (x.s.delta && fed < CHUNK ? ends[FROM_P * CHUNK + fed] : 0);
    written += ends[TO_STATE * CHUNK + t];
  }
  from[t] = read;
  to[t] = written;
  __syncthreads();
  if (t >= piece.count) return;
  sum += x.between[slot * CHUNK + t];
  for (int i = 0; i < CHUNK; i++) sum += i < t ? to[i] : from[i];
  put(x.dg + (piece.row + t) * x.s.heads + head, sum, x.add_g);
}

/* ---- The pass ------------------------------------------------------------------------------------------------------- */

/* Lays out what the kernels pass on; returns the number of floats. Gradients of operands that several value heads share go through floats
 * for each of these. */
template <class T> static int64_t lay_out(problem<T> *x, const cuda_scalar *c, float *base) {
  cuda_arena arena = {base, 0};
  const int64_t slots = x->s.slots, K = x->s.K, V = x->s.V, keys = slots * CHUNK * K;
  const bool delta = c->delta;
  x->blocks = (K + BLOCK - 1) / BLOCK;
  x->A = take<T>(&arena, slots * MATRIX);
  x->L = take<T>(&arena, delta ? slots * MATRIX : 0);
  x->W = take<T>(&arena, delta ? keys : 0);
  x->y = take<T>(&arena, slots * CHUNK * V);
  x->state_gradients = take<T>(&arena, slots * K * V);
  x->to_score = take<T>(&arena, slots * MATRIX);
  x->to_feedback = take<T>(&arena, delta ? slots * MATRIX : 0);
  x->between = take<float>(&arena, slots * CHUNK);
  x->ends = take<float>(&arena, slots * x->blocks * ENDS * CHUNK);
  x->across = take<float>(&arena, slots * x->blocks);
  if (c->q_heads < c->heads) x->shared_dq = take<float>(&arena, keys);
  if (c->k_heads < c->heads) x->shared_dk = take<float>(&arena, keys);
  if (c->k_heads < c->heads && delta) x->shared_dp = take<float>(&arena, keys);
  if (c->v_heads < c->heads) x->shared_dv = take<float>(&arena, slots * CHUNK * V);
  return arena.used;
}

int64_t cuda_scalar_workspace(const cuda_scalar *c, bool backward) {
  buffers b;
  problem<float> x = {};
  x.s = shape_of(c);
  return cuda_scalar_lay_out(&b, x.s, NULL, backward, sizeof(float)) + (backward ? lay_out(&x, c, NULL) : 0);
}

template <class T>
static void launch(void (*kernel)(problem<T>), const problem<T> &x, int64_t grid, int threads, int bytes) {
  static const char *what = "the scan over chunks, backward";
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
  kernel<<<(unsigned)grid, (unsigned)threads, bytes, comba_cuda_stream()>>>(x);
  comba_cuda_note(cudaGetLastError(), what);
}

template <class T, bool delta> static void run(const problem<T> &x) {
  const int64_t slots = x.s.slots, places = x.s.lanes * x.s.heads * ((x.s.V + BLOCK - 1) / BLOCK);
  launch(prepare<T, delta>, x, slots, THREADS, prepare_tiles<T>::bytes);
  const auto back = [&](auto width) {
    constexpr int K = decltype(width)::value;
    launch(go_back<T, K, delta>, x, places, THREADS, state_tiles<T, K>::bytes);
  };
  if (x.s.K <= 64)
    back(std::integral_constant<int, 64>());
  else if (x.s.K <= 128)
    back(std::integral_constant<int, 128>());
  else
    back(std::integral_constant<int, 256>());
  launch(find_score_gradients<T, delta>, x, slots, SCORE_THREADS, score_tiles<T, delta>::bytes);
  launch(find_key_gradients<T, delta>, x, slots * x.blocks, key_tiles<T, delta>::threads, key_tiles<T, delta>::bytes);
  if (x.dg) launch(find_gate_gradients<T>, x, slots, CHUNK, 0);
}

template <class T> void cuda_scalar_backward(const cuda_scalar *given, float *workspace) {
  cuda_scalar c = *given;
  c.final_state = NULL; /* forward has written it */
  buffers b;
  problem<T> x = {};
  x.s = shape_of(&c);
  const int64_t used = cuda_scalar_lay_out(&b, x.s, workspace, true, sizeof(T));
  lay_out(&x, &c, workspace + used);
  cuda_scalar_advance<T>(&c, x.s, b);
  x.q_group = c.heads / c.q_heads;
  x.k_group = c.heads / c.k_heads;
  x.v_group = c.heads / c.v_heads;
  x.q_stride = c.q_heads * c.K;
  x.k_stride = c.k_heads * c.K;
  x.v_stride = c.v_heads * c.V;
  x.scale = c.scale;
  x.after_decay = c.after_decay;
  x.G = b.G;
  x.beta = b.beta;
  x.q = (const T *)c.q;
  x.k = (const T *)c.k;
  x.p = (const T *)(c.p ? c.p : c.k);
  x.v = (const T *)c.v;
  x.output_gradient = (const T *)c.output_gradient;
  x.aligned = c.K * sizeof(T) % 16 == 0 && c.V * sizeof(T) % 16 == 0;
  x.states = (const T *)b.states;
  x.errors = (const T *)b.errors;
  x.final_gradient = c.final_state_gradient;
  x.initial_gradient = c.initial_state_gradient;
  x.dq = (T *)c.dq;
  x.dk = (T *)c.dk;
  x.dp = (T *)(c.p ? c.dp : NULL);
  x.dv = (T *)c.dv;
  x.dbeta = c.dbeta;
  x.dg = c.dg;
  x.add_q = c.add_q;
  x.add_k = c.add_k;
  x.add_p = c.add_p;
  x.add_v = c.add_v;
  x.add_beta = c.add_beta;
  x.add_g = c.add_g;
  x.add_state = c.add_state;
  if (c.delta)
    run<T, true>(x);
  else
    run<T, false>(x);
  if (x.shared_dq) unpack(x.s, x.shared_dq, c.q_heads, c.K, x.dq, c.add_q);
  if (x.shared_dk) unpack(x.s, x.shared_dk, c.k_heads, c.K, x.dk, c.add_k);
  if (x.shared_dp && c.p) unpack(x.s, x.shared_dp, c.k_heads, c.K, x.dp, c.add_p);
  if (x.shared_dv) unpack(x.s, x.shared_dv, c.v_heads, c.V, x.dv, c.add_v);
}

template void cuda_scalar_backward<float>(const cuda_scalar *, float *);
template void cuda_scalar_backward<bfloat16>(const cuda_scalar *, float *);
