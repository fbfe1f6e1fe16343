/* Gradients of q, k, p, beta and gates, each chunk by itself: what cuda_scalar_gradient.h says of find_score_gradients and the kernels
 * after it. */
#include "scan/cuda_scalar_chunk.h"
#include "scan/cuda_scalar_gradient.h"

#include <type_traits>

/* ---- Gradients of scores -------------------------------------------------------------------------------------------- */

enum { SCORE_THREADS = 128 }; /* a warp has 16 rows and all columns of a (64, 64) */

template <class T, bool delta> struct score_tiles {
  static constexpr int stride = tile_stride<T, BLOCK>, tile = CHUNK * stride, count = delta ? 3 : 2;
  static constexpr int bytes = 2 * count * tile * (int)sizeof(T);
};

/* F = do e^T and H = y e^T. A path from token j to the output of token i weighs A_ij beta_j F_ij; one to the feedback of token i weighs
 * -L_ij beta_i beta_j H_ij, and passes the gates that decay what token i reads. */
template <class T, bool delta>
static __global__ void __launch_bounds__(SCORE_THREADS) find_score_gradients(const gradient_problem<T> x) {
  typedef score_tiles<T, delta> t;
  constexpr int products = delta ? 2 : 1;
  extern __shared__ int4 shared[];
  __shared__ float paths[CHUNK][CHUNK + 1];
  __shared__ double G[CHUNK];
  __shared__ float beta[CHUNK];
  T *tiles = (T *)shared;
  const int64_t slot = blockIdx.x;
  const int V = (int)x.s.V;
  int64_t head;
  const cuda_piece piece = piece_of_slot(x.s, slot, &head);
  if (!piece.count) return;
  const int row = threadIdx.x / 32 * TILE_ROWS;
  const T *written = delta ? x.errors + slot * CHUNK * V : x.v + piece.row * (int64_t)x.v_stride + head / x.v_group * V;

  const auto load_values = [&](int block) {
    T *to = tiles + block % 2 * t::count * t::tile;
    const int first = block * BLOCK;
    if (first < V) {
      tile_load_async<CHUNK, BLOCK, SCORE_THREADS>(to, written + first, delta ? V : x.v_stride, piece.count, V - first,
                                                   x.aligned);
      tile_load_async<CHUNK, BLOCK, SCORE_THREADS>(to + t::tile, x.output_gradient_at(piece, head) + first,
                                                   x.output_stride, x.output_rows(piece), V - first, x.aligned);
      if (delta)
        tile_load_async<CHUNK, BLOCK, SCORE_THREADS>(to + 2 * t::tile, x.y + slot * CHUNK * x.values + first, x.values,
                                                     CHUNK, BLOCK, true);
    }
    close_copies();
  };
  load_values(0);
  if (threadIdx.x < CHUNK) {
    G[threadIdx.x] = x.G[slot * CHUNK + threadIdx.x];
    beta[threadIdx.x] = x.beta_at(slot)[threadIdx.x];
  }
  float gradient[products][CHUNK / 8][4] = {};
  for (int block = 0; block * BLOCK < V; block++) {
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
  tile_read<CHUNK>(score, x.qk + corner, CHUNK);
  tile_each<CHUNK>([&](int n, int at, int i, int j) {
    i += row;
    const float F = beta[j] * gradient[0][n][at];
    gradient[0][n][at] = j <= i ? x.scale * decay(G[i] - G[j]) * F : 0;
    paths[i][j] = j < i ? score[n][at] * gradient[0][n][at] : 0;
  });
  float *scratch = (float *)shared + threadIdx.x / 32 * sheet_floats<CHUNK>;
  tile_write_wide<CHUNK>(x.to_score + corner, CHUNK, TILE_ROWS, CHUNK, false, scratch, gradient[0]);
  __syncthreads();
  if (delta) {
    const int lag = x.after_decay ? 0 : 1; /* token i reads what token i - lag has decayed */
    tile_read<CHUNK>(score, x.pk + corner, CHUNK);
    tile_each<CHUNK>([&](int n, int at, int i, int j) {
      i += row;
      const float H = gradient[products - 1][n][at], weight = beta[i] * beta[j] * H;
      if (i == j && i < piece.count && x.dbeta) put(x.dbeta + (piece.row + i) * x.s.heads + head, H, x.add_beta);
      gradient[products - 1][n][at] = j < i ? -decay(x.feedback_sum(G, i) - G[j]) * weight : 0;
      if (j < i - lag) paths[i - lag][j] += score[n][at] * gradient[products - 1][n][at];
    });
    tile_write_wide<CHUNK>(x.to_feedback + corner, CHUNK, TILE_ROWS, CHUNK, false, scratch, gradient[products - 1]);
    __syncthreads();
  }
  sum_paths<SCORE_THREADS>(paths, [&](int t, float sum) { x.between[slot * CHUNK + t] = sum; });
}

/* ---- Gradients of keys ---------------------------------------------------------------------------------------------- */

/* A block has 64 tokens and `groups` times 64 columns of K, four warps for each. Two groups read wider pieces of V and, since a processor has
 * only one such block, the tiles of the end while the last piece is worked on. */
template <class T, bool delta, int groups> struct key_tiles {
  static constexpr int threads = groups * 128, piece = groups == 2 ? 64 : 32,
                       blocks = groups == 2      ? 1
                                : sizeof(T) == 2 ? 3
                                                 : 2;
  static constexpr int stride = tile_stride<T, piece>, tile = BLOCK * stride, count = 2 * groups + (delta ? 3 : 2);
  static constexpr int block_stride = tile_stride<T, BLOCK>, block_tile = CHUNK * block_stride;
  static constexpr int loop_size = 2 * count * tile, end_size = (delta ? 3 * groups + 2 : 2 * groups + 1) * block_tile;
  static constexpr bool ends_ahead = groups == 2;
  static constexpr int size = ends_ahead ? loop_size + end_size : loop_size > end_size ? loop_size : end_size;
  static constexpr int bytes = size * (int)sizeof(T);
};

/* ends = sums over the block's columns of what goes from a state to tokens, or from tokens to the state after them: a row's product with
 * `keys` (64, 64) in shared memory. */
template <int stride, class T>
static __device__ void find_ends(const float (&sum)[BLOCK / 8][4], const T *keys, float *ends) {
  float part[2] = {0, 0};
  tile_each<BLOCK>([&](int n, int i, int row, int column) {
    if (i % 2) return;
    const float2 key = load_pair(keys + row * stride + column);
    part[i / 2] += sum[n][i] * key.x + sum[n][i + 1] * key.y;
  });
#pragma unroll
  for (int half = 0; half < 2; half++) {
    part[half] += __shfl_xor_sync(~0u, part[half], 1);
    part[half] += __shfl_xor_sync(~0u, part[half], 2);
    if (threadIdx.x % 4 == 0) ends[threadIdx.x % 32 / 4 + half * 8] = part[half];
  }
}

/* First from the states, over pieces of V, then from the tokens of the chunk. */
template <class T, bool delta, int groups>
static __global__ void __launch_bounds__(groups * 128, key_tiles<T, delta, groups>::blocks)
    find_key_gradients(const gradient_problem<T> x) {
  typedef key_tiles<T, delta, groups> t;
  constexpr int reads = delta ? 2 : 1;
  extern __shared__ int4 shared[];
  __shared__ float across_parts[groups * 4];
  T *tiles = (T *)shared, *end_tiles = tiles + (t::ends_ahead ? t::loop_size : 0);
  const int in_slot = (x.blocks + groups - 1) / groups;
  const int64_t slot = blockIdx.x / in_slot;
  const int V = (int)x.s.V, first_block = blockIdx.x % in_slot * groups, group = threadIdx.x / 128;
  const int block_key = first_block * BLOCK, block_keys = (int)x.s.K - block_key; /* of all groups */
  const int first_key = block_key + group * BLOCK, keys = (int)x.s.K - first_key; /* of this one */
  int64_t head;
  const cuda_piece piece = piece_of_slot(x.s, slot, &head);
  if (!piece.count) return;
  const int row = threadIdx.x % 128 / 32 * TILE_ROWS;
  const T *written = delta ? x.errors + slot * CHUNK * V : x.v + piece.row * (int64_t)x.v_stride + head / x.v_group * V;

  /* S and dS' (groups 64 of K, a piece of V), e, do, y (64 tokens, a piece of V) */
  const auto load_piece = [&](int first, int half) {
    T *to = tiles + half * t::count * t::tile;
    const auto load = [&](const T *from, int stride, int rows, int columns, bool aligned) {
      tile_load_async<BLOCK, t::piece, t::threads>(to, from + first, stride, rows, columns - first, aligned);
      to += t::tile;
    };
    const auto load_state = [&](const T *from, int stride, int rows, int columns, bool aligned) {
      tile_load_async<groups * BLOCK, t::piece, t::threads>(to, from + first, stride, rows, columns - first, aligned);
      to += groups * t::tile;
    };
    load_state(x.states + (slot * x.s.K + block_key) * V, V, block_keys, V, x.aligned);
    load_state(x.state_gradients + (slot * x.keys + block_key) * x.values, x.values, x.keys - block_key, x.values,
               true);
    load(written, delta ? V : x.v_stride, piece.count, V, x.aligned);
    load(x.output_gradient_at(piece, head), x.output_stride, x.output_rows(piece), V, x.aligned);
    if (delta) load(x.y + slot * CHUNK * x.values, x.values, CHUNK, x.values, true);
  };
  /* q, k, p (64 tokens, 64 of K) for each group, and what the scores' gradients are */
  const auto load_end = [&]() {
    T *to = end_tiles;
    const auto load = [&](const T *from, int stride, int rows, int columns, bool aligned) {
      tile_load_async<CHUNK, BLOCK, t::threads>(to, from, stride, rows, columns, aligned);
      to += t::block_tile;
    };
    load(x.to_score + slot * MATRIX, CHUNK, CHUNK, CHUNK, true);
    if (delta) load(x.to_feedback + slot * MATRIX, CHUNK, CHUNK, CHUNK, true);
#pragma unroll
    for (int g = 0; g < groups; g++) {
      const int first = block_key + g * BLOCK, columns = (int)x.s.K - first;
      load(x.q_at(piece, head) + first, x.q_stride, piece.count, columns, x.aligned);
      load(x.k_at(piece, head) + first, x.k_stride, piece.count, columns, x.aligned);
      if (delta) load(x.p_at(piece, head) + first, x.k_stride, piece.count, columns, x.aligned);
    }
  };
  float read[reads][BLOCK / 8][4] = {}, dk[1][BLOCK / 8][4] = {}, dots[4] = {}; /* read: dq, dp */
  load_piece(0, 0);
  close_copies();
  for (int first = 0, half = 0; first < V; first += t::piece, half ^= 1) {
    if (first + t::piece < V)
      load_piece(first + t::piece, !half);
    else if (t::ends_ahead)
      load_end();
    close_copies();
    wait_for_copies<1>();
    __syncthreads();
    const T *block_states = tiles + half * t::count * t::tile, *states = block_states + group * t::tile;
    const T *gradients = states + groups * t::tile;
    const T *const errors[] = {block_states + 2 * groups * t::tile + row * t::stride}, *left[reads];
#pragma unroll
    for (int m = 0; m < reads; m++) left[m] = errors[0] + (1 + m) * t::tile;
    tiles_multiply<reads, BLOCK, t::piece, false, true>(read, left, t::stride, states, t::stride);
    tiles_multiply<1, BLOCK, t::piece, false, true>(dk, errors, t::stride, gradients, t::stride);
    tile_dot<t::piece>(dots, states + row * t::stride, gradients + row * t::stride, t::stride);
    __syncthreads();
  }
  if (!t::ends_ahead) {
    load_end();
    close_copies();
  }

  const float *factors = x.factors + slot * FACTORS * CHUNK;
  float in[2], fed[2], out[2]; /* of this lane's two rows */
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float *factor = factors + row + threadIdx.x % 32 / 4 + half * 8;
    in[half] = x.scale * factor[DECAY * CHUNK];
    fed[half] = -factor[BETA * CHUNK] * factor[READ * CHUNK];
    out[half] = (delta ? factor[BETA * CHUNK] : 1) * factor[LEFT * CHUNK];
  }
  tile_each<BLOCK>([&](int n, int i, int, int) {
    read[0][n][i] *= in[i / 2];
    if (delta) read[reads - 1][n][i] *= fed[i / 2];
    dk[0][n][i] *= out[i / 2];
  });
  const float across = warp_sum(diagonal_part<T>(dots));
  if (threadIdx.x % 32 == 0) across_parts[threadIdx.x / 32] = across;
  wait_for_copies<0>();
  __syncthreads();
  const int64_t block = slot * x.blocks + first_block + group;
  const bool there = first_block + group < x.blocks;
  if (threadIdx.x % 128 == 0 && there) {
    const float *part = across_parts + group * 4;
    x.across[block] = factors[DECAY * CHUNK + CHUNK - 1] * (part[0] + part[1] + part[2] + part[3]);
  }

  const T *to_score = end_tiles, *to_feedback = to_score + t::block_tile;
  const T *q = end_tiles + (delta ? 2 + 3 * group : 1 + 2 * group) * t::block_tile, *k = q + t::block_tile;
  const T *p = k + t::block_tile;
  if (there) {
    float *ends = x.ends + block * ENDS * CHUNK + row;
    find_ends<t::block_stride>(read[0], q + row * t::block_stride, ends + FROM_Q * CHUNK);
    find_ends<t::block_stride>(dk[0], k + row * t::block_stride, ends + TO_STATE * CHUNK);
    if (delta) find_ends<t::block_stride>(read[reads - 1], p + row * t::block_stride, ends + FROM_P * CHUNK);
  }

  const T *left[reads], *const score_columns[] = {to_score + row}, *const feedback_columns[] = {to_feedback + row};
#pragma unroll
  for (int m = 0; m < reads; m++) left[m] = to_score + m * t::block_tile + row * t::block_stride;
  tiles_multiply<reads, BLOCK, CHUNK, false, false>(read, left, t::block_stride, k, t::block_stride);
  tiles_multiply<1, BLOCK, CHUNK, true, false>(dk, score_columns, t::block_stride, q, t::block_stride);
  if (delta) tiles_multiply<1, BLOCK, CHUNK, true, false>(dk, feedback_columns, t::block_stride, p, t::block_stride);
  if (delta && x.p == x.k) tile_each<BLOCK>([&](int n, int i, int, int) { dk[0][n][i] += read[reads - 1][n][i]; });

  if (!t::ends_ahead) __syncthreads(); /* the scratch lies where the end's tiles do */
  float *scratch = (float *)shared + threadIdx.x / 32 * sheet_floats<BLOCK>;
  const auto write = [&](T *to, float *shared_to, int stride, bool add, const float(&sum)[BLOCK / 8][4]) {
    const int rows = piece.count - row;
    T *place = to + (piece.row + row) * stride + head * x.s.K + first_key;
    if (shared_to)
      tile_write<BLOCK>(shared_to + (slot * CHUNK + row) * x.s.K + first_key, x.s.K, rows, keys, x.aligned, false, sum);
    else if (to && x.aligned)
      tile_write_wide<BLOCK>(place, stride, rows, keys, add, scratch, sum);
    else if (to)
      tile_write<BLOCK>(place, stride, rows, keys, false, add, sum);
  };
  write(x.dq, x.shared_dq, x.q_stride, x.add_q, read[0]);
  write(x.dk, x.shared_dk, x.k_stride, x.add_k, dk[0]);
  if (delta) write(x.dp, x.shared_dp, x.k_stride, x.add_p, read[reads - 1]);
}

/* dg: of the paths that pass a gate; a thread a token. */
template <class T> static __global__ void find_gate_gradients(const gradient_problem<T> x) {
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

template <class T, bool delta> static void run(const gradient_problem<T> &x) {
  launch(find_score_gradients<T, delta>, x, x.s.slots, SCORE_THREADS, score_tiles<T, delta>::bytes);
  const auto keys = [&](auto groups) {
    typedef key_tiles<T, delta, decltype(groups)::value> t;
    launch(find_key_gradients<T, delta, decltype(groups)::value>, x, x.s.slots * ((x.blocks + groups - 1) / groups),
           t::threads, t::bytes);
  };
  constexpr int most = sizeof(T) == sizeof(float) ? 1 : 2;
  if (x.blocks == 1 || comba_cuda_shared_bytes() < key_tiles<T, delta, most>::bytes + 2048)
    keys(std::integral_constant<int, 1>());
  else
    keys(std::integral_constant<int, most>());
  if (x.dg) launch(find_gate_gradients<T>, x, x.s.slots, CHUNK, 0);
}

template <class T> void cuda_scalar_find_key_gradients(const gradient_problem<T> &x) {
  if (x.s.delta)
    run<T, true>(x);
  else
    run<T, false>(x);
}

template void cuda_scalar_find_key_gradients<float>(const gradient_problem<float> &);
template void cuda_scalar_find_key_gradients<bfloat16>(const gradient_problem<bfloat16> &);
