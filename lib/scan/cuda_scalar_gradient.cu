/* The part of backward that passes through the state: prepare and go_back of cuda_scalar_gradient.h; and the pass. */
#include "scan/cuda_scalar_chunk.h"
#include "scan/cuda_scalar_gradient.h"

#include <type_traits>

enum { THREADS = 256 };

/* ---- Prepare -------------------------------------------------------------------------------------------------------- */

template <class T> struct prepare_tiles {
  static constexpr int stride = tile_stride<T, BLOCK>, tile = CHUNK * stride, count = 6;
  static constexpr int bytes = count * tile * (int)sizeof(T) + 3 * CHUNK * MATRIX_STRIDE * (int)sizeof(float);
};

template <class T, bool delta> static __global__ void __launch_bounds__(THREADS) prepare(const gradient_problem<T> x) {
  typedef prepare_tiles<T> t;
  extern __shared__ int4 shared[];
  __shared__ double G[CHUNK];
  __shared__ float beta[CHUNK];
  float *A = (float *)shared, *L = A + CHUNK * MATRIX_STRIDE, *X = L + CHUNK * MATRIX_STRIDE;
  T *tiles = (T *)(X + CHUNK * MATRIX_STRIDE);
  const int64_t slot = blockIdx.x;
  const int K = (int)x.s.K, V = (int)x.s.V;
  int64_t head;
  const cuda_piece piece = piece_of_slot(x.s, slot, &head);
  const int row = warp_row(), column = warp_column();

  /* three tiles of 64 columns at a time: q, k, p */
  const auto load_keys = [&](int block) {
    T *to = tiles + block % 2 * 3 * t::tile;
    const int first = block * BLOCK;
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
    beta[threadIdx.x] = x.beta_at(slot)[threadIdx.x];
  }
  float score[delta ? 2 : 1][HALF / 8][4] = {};
  for (int block = 0; block < x.blocks; block++) {
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
  const int values = (V + BLOCK - 1) / BLOCK, all = values + (delta ? x.blocks : 0);
  const auto load_next = [&](int i) {
    T *to = tiles + i % t::count * t::tile;
    if (i < values)
      tile_load_async<CHUNK, BLOCK, THREADS>(to, x.output_gradient_at(piece, head) + i * BLOCK, x.output_stride,
                                             x.output_rows(piece), V - i * BLOCK, x.aligned);
    else if (i < all)
      tile_load_async<CHUNK, BLOCK, THREADS>(to, x.k_at(piece, head) + (i - values) * BLOCK, x.k_stride, piece.count,
                                             K - (i - values) * BLOCK, x.aligned);
    close_copies();
  };
  for (int i = 0; i < t::count - 1; i++) load_next(i);

  const int64_t corner = slot * MATRIX + row * CHUNK + column;
  tile_write<HALF>(x.qk + corner, CHUNK, score[0]);
  if (delta) tile_write<HALF>(x.pk + corner, CHUNK, score[delta]);
  tile_each<HALF>([&](int n, int at, int i, int j) {
    i += row;
    j += column;
    const float a = j <= i ? x.scale * decay(G[i] - G[j]) * score[0][n][at] : 0;
    A[i * MATRIX_STRIDE + j] = score[0][n][at] = a;
    if (delta)
      L[i * MATRIX_STRIDE + j] = j < i ? beta[i] * decay(x.feedback_sum(G, i) - G[j]) * score[delta][n][at] : 0;
  });
  __syncthreads();

  /* AX and the parts of e^{G_n - G} X, over A and L, which are no longer needed */
  T *AX = (T *)shared, *scaled = AX + CHUNK * t::stride, *rest = scaled + CHUNK * t::stride;
  float product[HALF / 8][4] = {};
  if (delta) {
    invert(L, X);
    for (int k = column; k < row + TILE_ROWS; k += TILE_ROWS) /* elsewhere A or X is zero */
      tile_multiply<HALF, TILE_ROWS, false>(product, A + row * MATRIX_STRIDE + k, MATRIX_STRIDE,
                                            X + k * MATRIX_STRIDE + column, MATRIX_STRIDE);
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
  tile_write<HALF>(AX + row * t::stride + column, t::stride, product);

  float *scratch = (float *)(rest + CHUNK * t::stride) + threadIdx.x / 32 * sheet_floats<HALF>; /* over X */
  const auto write = [&](T *to, int stride, const float(&sum)[HALF / 8][4]) {
    if (sizeof(T) == sizeof(float)) /* leaves no room for the scratch */
      tile_write<HALF>(to, stride, sum);
    else
      tile_write_wide<HALF>(to, stride, TILE_ROWS, HALF, false, scratch, sum);
  };
  for (int i = 0; i < all; i++) {
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
      const int first = i * BLOCK + column;
      add(AX);
      write(x.y + (slot * CHUNK + row) * x.values + first, x.values, sum[0]);
    } else {
      const int first = (i - values) * BLOCK + column;
      add(scaled);
      if (sizeof(T) < sizeof(float)) add(rest);
      write(x.W + (slot * CHUNK + row) * x.keys + first, x.keys, sum[0]);
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

/* Loads that stay where they are written, ahead of their use: left to itself the compiler moves them to it. */
static __device__ inline float load_early(const float *from) {
  float value;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(from));
  return value;
}
static __device__ inline int4 load_vector_early(const void *from) {
  int4 value;
  asm volatile("ld.global.v4.s32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

/* Copies of q, W (or k) and p follow one another through two buffers, each queued as soon as the one before it in its buffer has been
 * read: q and W of a chunk before it begins, p over q. So the buffers change roles from chunk to chunk. */
template <class T, int K, bool delta>
static __global__ void __launch_bounds__(THREADS, state_tiles<T, K>::blocks) go_back(const gradient_problem<T> x) {
  typedef state_tiles<T, K> t;
  extern __shared__ int4 shared[];
  T *copy = (T *)shared, *values = copy + K * t::stride;
  __shared__ cuda_piece pieces[2]; /* of this chunk and the one before */
  T *ring = values + CHUNK * t::stride;
  int first = 0, second = CHUNK * t::key_stride; /* offsets in `ring` of the two buffers */
  const int V = (int)x.s.V, width = (int)x.s.K, heads = (int)x.s.heads, batch = (int)x.s.lanes * heads;
  const int blocks = (V + BLOCK - 1) / BLOCK, place = blockIdx.x / blocks, lane = place / heads, head = place % heads;
  const int first_value = blockIdx.x % blocks * BLOCK;
  const int row = warp_row(), column = warp_column();                        /* of y */
  const int state_row = threadIdx.x / 32 % t::groups * t::tiles * TILE_ROWS; /* of the state */
  const int state_column = threadIdx.x / 32 / t::groups * t::columns;
  float state[t::tiles][t::columns / 8][4] = {};

  const auto load_rows = [&](int to, const T *from, int stride, const cuda_piece &piece) {
    tile_load_async<CHUNK, K, THREADS>(ring + to, from, stride, piece.count, width, x.aligned);
    close_copies();
  };
  const auto load_q = [&](int to, const cuda_piece &piece) { load_rows(to, x.q_at(piece, head), x.q_stride, piece); };
  const auto load_reads = [&](int to, const cuda_piece &piece, int64_t slot) {
    if (!delta) return load_rows(to, x.k_at(piece, head), x.k_stride, piece);
    tile_load_async<CHUNK, K, THREADS>(ring + to, x.W + slot * CHUNK * x.keys, x.keys, CHUNK, x.keys, true);
    close_copies();
  };
  /* this thread's part of do, loaded ahead where rows are aligned: it is scaled on its way into the tile */
  constexpr int vector = 16 / sizeof(T), in_row = BLOCK / vector, vectors = CHUNK * in_row / THREADS;
  const int ahead_row = threadIdx.x / in_row, ahead_column = threadIdx.x % in_row * vector;
  int4 ahead[vectors];
  float ahead_decay[vectors];
  const auto load_ahead = [&](const cuda_piece &piece, int64_t slot) {
    const float *decays = x.factors + (slot * FACTORS + DECAY) * CHUNK + ahead_row;
    const T *from = x.output_gradient_at(piece, head) + first_value + ahead_column;
    const int rows = x.aligned && first_value + ahead_column < V ? x.output_rows(piece) : 0;
#pragma unroll
    for (int n = 0; n < vectors; n++) {
      const int i = ahead_row + n * (THREADS / in_row);
      ahead[n] = make_int4(0, 0, 0, 0);
      if (i < rows) ahead[n] = load_vector_early(from + i * x.output_stride);
      ahead_decay[n] = load_early(decays + n * (THREADS / in_row));
    }
  };
  const auto state_at = [&](const cuda_piece &piece) {
    return (piece.sequence * heads + head) * width * (int64_t)V + first_value;
  };
  const auto state_each = [&](auto f) {
#pragma unroll
    for (int m = 0; m < t::tiles; m++) f(state[m], state_row + m * TILE_ROWS, state_column);
  };

  int step = (int)x.s.steps - 1;
  int64_t slot = (int64_t)step * batch + place;
  if (!threadIdx.x) pieces[step % 2] = piece_at(x.s, step, lane);
  __syncthreads();
  load_q(first, pieces[step % 2]);
  load_reads(second, pieces[step % 2], slot);
  load_ahead(pieces[step % 2], slot);
  for (; step >= 0; step--) {
    const cuda_piece &piece = pieces[step % 2], &previous = pieces[(step + 1) % 2];
    const float *factors = x.factors + slot * FACTORS * CHUNK;
    if (x.aligned) {
#pragma unroll
      for (int n = 0; n < vectors; n++) {
        const int i = ahead_row + n * (THREADS / in_row);
        const float factor = x.scale * ahead_decay[n];
        T part[vector];
        memcpy(part, &ahead[n], sizeof part);
#pragma unroll
        for (int e = 0; e < vector; e++) store(part + e, load(part + e) * factor);
        memcpy(&ahead[n], part, sizeof part);
        *(int4 *)(values + i * t::stride + ahead_column) = ahead[n];
      }
    } else {
      const T *from = x.output_gradient_at(piece, head) + first_value;
      for (int at = threadIdx.x; at < CHUNK * BLOCK; at += THREADS) {
        const int i = at / BLOCK, j = at % BLOCK;
        const bool there = i < x.output_rows(piece) && first_value + j < V;
        store(values + i * t::stride + j,
              there ? x.scale * factors[DECAY * CHUNK + i] * load(from + i * x.output_stride + j) : 0);
      }
    }
    if (piece.last) {
      const float *final_gradient = x.final_gradient ? x.final_gradient + state_at(piece) : NULL;
      state_each([&](auto &part, int first_row, int first_column) {
        tile_each<t::columns>([&](int n, int i, int row, int column) {
          row += first_row;
          column += first_column;
          part[n][i] = final_gradient && row < width && first_value + column < V ? final_gradient[row * V + column] : 0;
        });
      });
    }
    state_each([&](auto &part, int i, int j) { tile_write<t::columns>(copy + i * t::stride + j, t::stride, part); });
    const int64_t y_at = (slot * CHUNK + row) * x.values + first_value + column;
    const float total = load_early(factors + DECAY * CHUNK + CHUNK - 1);
    /* of this lane's two rows of y; without delta `read` is what the chunk leaves of its writing */
    float read[2], beta[2];
    for (int half = 0; half < 2; half++) {
      const float *factor = factors + row + threadIdx.x % 32 / 4 + half * 8;
      read[half] = load_early(factor + (delta ? READ : LEFT) * CHUNK);
      beta[half] = delta ? load_early(factor + BETA * CHUNK) : 1;
    }

    wait_for_copies<1>();
    __syncthreads();
    tile_copy_out<BLOCK, THREADS>(x.state_gradients + slot * x.keys * x.values + first_value, copy, x.values, x.keys);
    if (!threadIdx.x && step) pieces[(step + 1) % 2] = piece_at(x.s, step - 1, lane);
    state_each(
        [&](auto &part, int, int) { tile_each<t::columns>([&](int n, int i, int, int) { part[n][i] *= total; }); });
    const auto add_to_state = [&](const T *rows) {
      const T *left[t::tiles];
#pragma unroll
      for (int m = 0; m < t::tiles; m++) left[m] = rows + state_row + m * TILE_ROWS;
      tiles_multiply<t::tiles, t::columns, CHUNK, true, false>(state, left, t::key_stride, values + state_column,
                                                               t::stride);
    };
    add_to_state(ring + first);

    wait_for_copies<0>();
    __syncthreads();
    if (delta)
      load_rows(first, x.p_at(piece, head), x.k_stride, piece);
    else if (step)
      load_q(first, previous);
    float y[HALF / 8][4], product[HALF / 8][4] = {};
    tile_multiply<HALF, K, false>(product, ring + second + row * t::key_stride, t::key_stride, copy + column,
                                  t::stride);
    tile_read<HALF>(y, x.y + y_at, x.values);
    tile_each<HALF>([&](int n, int i, int, int) { y[n][i] += (delta ? 1 : read[i / 2]) * product[n][i]; });
    /* the warp's part of a tile that is free now: from there rows go out whole */
    T *own = values + row * t::stride + column;
    if (delta) { /* dv = beta y, from y while it is in float; then what p reads */
      tile_write<HALF>(own, t::stride, y);
      __syncwarp();
      warp_copy_out(x.y + y_at, x.values, TILE_ROWS, HALF, own, t::stride);
      tile_each<HALF>([&](int n, int i, int, int) { y[n][i] *= beta[i / 2]; });
    }
    if (x.dv && !x.shared_dv && x.aligned && !x.add_v) {
      __syncwarp();
      tile_write<HALF>(own, t::stride, y);
      __syncwarp();
      warp_copy_out(x.dv + ((piece.row + row) * heads + head) * V + first_value + column, x.output_stride,
                    piece.count - row, V - first_value - column, own, t::stride);
    } else if (x.shared_dv)
      tile_write<HALF>(x.shared_dv + (slot * CHUNK + row) * V + first_value + column, V, piece.count - row,
                       V - first_value - column, x.aligned, false, y);
    else if (x.dv)
      tile_write<HALF>(x.dv + ((piece.row + row) * heads + head) * V + first_value + column, x.output_stride,
                       piece.count - row, V - first_value - column, x.aligned, x.add_v, y);

    if (delta) {
      tile_each<HALF>([&](int n, int i, int, int) { y[n][i] *= -read[i / 2]; });
      __syncwarp();
      tile_write<HALF>(own, t::stride, y);
      wait_for_copies<0>();
      __syncthreads();
      if (step) load_q(second, previous);
      if (step) load_ahead(previous, slot - batch);
      add_to_state(ring + first);
      __syncthreads();
      if (step) load_reads(first, previous, slot - batch);
      first = second;
      second = CHUNK * t::key_stride - first;
    } else {
      __syncthreads();
      if (step) load_reads(second, previous, slot - batch);
      if (step) load_ahead(previous, slot - batch);
    }
    if (piece.first && x.initial_gradient)
      state_each([&](auto &part, int i, int j) {
        tile_write<t::columns>(x.initial_gradient + state_at(piece) + i * V + j, V, width - i, V - first_value - j,
                               false, x.add_state, part);
      });
    slot -= batch;
  }
}

/* ---- The pass ------------------------------------------------------------------------------------------------------- */

/* Lays out what the kernels pass on; returns the number of floats. Gradients of operands that several value heads share go through floats
 * for each of these. */
template <class T> static int64_t lay_out(gradient_problem<T> *x, const cuda_scalar *c, float *base) {
  cuda_arena arena = {base, 0};
  const int64_t slots = x->s.slots, K = x->s.K, V = x->s.V, keys = slots * CHUNK * K;
  const bool delta = c->delta;
  x->blocks = (int)(K + BLOCK - 1) / BLOCK;
  x->keys = x->blocks * BLOCK;
  x->values = (int)(V + BLOCK - 1) / BLOCK * BLOCK;
  x->qk = take<T>(&arena, slots * MATRIX);
  x->pk = take<T>(&arena, delta ? slots * MATRIX : 0);
  x->W = take<T>(&arena, delta ? slots * CHUNK * x->keys : 0);
  x->y = take<T>(&arena, slots * CHUNK * x->values);
  x->state_gradients = take<T>(&arena, slots * x->keys * x->values);
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

template <class T> static int64_t workspace_of(const cuda_scalar *c) {
  gradient_problem<T> x = {};
  x.s = shape_of(c);
  return lay_out(&x, c, NULL);
}

int64_t cuda_scalar_gradient_workspace(const cuda_scalar *c, int64_t type_size) {
  return type_size == sizeof(float) ? workspace_of<float>(c) : workspace_of<bfloat16>(c);
}

/* Forward's kernels have less. */
template <class T> static int64_t shared_of(int64_t K) {
  const int state = K <= 64    ? state_tiles<T, 64>::bytes
                    : K <= 128 ? state_tiles<T, 128>::bytes
                               : state_tiles<T, 256>::bytes;
  return 2048 + max(state, prepare_tiles<T>::bytes);
}

int64_t cuda_scalar_shared(int64_t K, int64_t type_size) {
  return type_size == sizeof(float) ? shared_of<float>(K) : shared_of<bfloat16>(K);
}

template <class T, bool delta> static void run(const gradient_problem<T> &x) {
  const int64_t places = x.s.lanes * x.s.heads * (x.values / BLOCK);
  launch(prepare<T, delta>, x, x.s.slots, THREADS, prepare_tiles<T>::bytes);
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
}

template <class T> void cuda_scalar_backward(const cuda_scalar *given, float *kept, float *workspace) {
  cuda_scalar c = *given;
  c.final_state = NULL; /* forward has written it */
  buffers b;
  gradient_problem<T> x = {};
  x.s = shape_of(&c);
  const bool one_chunk = is_one_chunk(&c) && !c.final_state_gradient;
  if (is_one_chunk(&c) && !one_chunk) kept = NULL; /* it lacks the states */
  int64_t used = cuda_scalar_lay_out_kept(&b, x.s, kept ? kept : workspace, sizeof(T));
  if (kept) {
    used = 0;
  } else {
    used += cuda_scalar_lay_out_rest(&b, x.s, workspace + used, false, sizeof(T));
    cuda_scalar_advance<T>(&c, x.s, b);
  }
  lay_out(&x, &c, workspace + used);
  x.q_group = (int)(c.heads / c.q_heads);
  x.k_group = (int)(c.heads / c.k_heads);
  x.v_group = (int)(c.heads / c.v_heads);
  x.q_stride = (int)(c.q_heads * c.K);
  x.k_stride = (int)(c.k_heads * c.K);
  x.v_stride = (int)(c.v_heads * c.V);
  x.output_stride = (int)(c.heads * c.V);
  x.scale = c.scale;
  x.after_decay = c.after_decay;
  x.G = b.G;
  x.q = (const T *)c.q;
  x.k = (const T *)c.k;
  x.p = (const T *)(c.p ? c.p : c.k);
  x.v = (const T *)c.v;
  x.output_gradient = (const T *)c.output_gradient;
  const uintptr_t addresses = (uintptr_t)c.q | (uintptr_t)c.k | (uintptr_t)c.p | (uintptr_t)c.v | (uintptr_t)c.dq |
                              (uintptr_t)c.dk | (uintptr_t)c.dp | (uintptr_t)c.dv | (uintptr_t)c.output_gradient;
  x.aligned = c.K * sizeof(T) % 16 == 0 && c.V * sizeof(T) % 16 == 0 && addresses % 16 == 0;
  x.factors = b.factors;
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
  if (one_chunk) return cuda_scalar_backward_one_chunk(x);
  if (c.delta)
    run<T, true>(x);
  else
    run<T, false>(x);
  cuda_scalar_find_key_gradients(x);
  if (x.shared_dq) unpack(x.s, x.shared_dq, c.q_heads, c.K, x.dq, c.add_q);
  if (x.shared_dk) unpack(x.s, x.shared_dk, c.k_heads, c.K, x.dk, c.add_k);
  if (x.shared_dp && c.p) unpack(x.s, x.shared_dp, c.k_heads, c.K, x.dp, c.add_p);
  if (x.shared_dv) unpack(x.s, x.shared_dv, c.v_heads, c.V, x.dv, c.add_v);
}

template void cuda_scalar_backward<float>(const cuda_scalar *, float *, float *);
template void cuda_scalar_backward<bfloat16>(const cuda_scalar *, float *, float *);
