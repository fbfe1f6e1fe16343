/* Forward of cuda_scalar.h: what each chunk has by itself (find_chunks), the states from chunk to chunk (cuda_scalar_scan.cu), and the
 * output, o = scale e^G (q S) + A e. */
#include "scan/cuda_fragment.h"
#include "scan/cuda_scalar_chunk.h"

/* ---- Workspace ------------------------------------------------------------------------------------------------------ */

int64_t cuda_scalar_lay_out_kept(buffers *b, const shape &s, float *base, int64_t type_size) {
  cuda_arena arena = {base, 0};
  const int64_t rows = s.slots * CHUNK;
  b->G = take<double>(&arena, rows);
  b->factors = take<float>(&arena, rows * FACTORS);
  b->states = take<char>(&arena, s.slots * s.K * s.V * type_size);
  b->errors = s.delta ? take<char>(&arena, rows * s.V * type_size) : NULL;
  return arena.used;
}

int64_t cuda_scalar_lay_out_rest(buffers *b, const shape &s, float *base, bool output, int64_t type_size) {
  cuda_arena arena = {base, 0};
  b->correction = s.delta ? take<char>(&arena, s.slots * MATRIX * type_size) : NULL;
  b->A = output ? take<char>(&arena, s.slots * MATRIX * type_size) : NULL;
  return arena.used;
}

comba_status cuda_scalar_infer(comba_signature *s, const cuda_scalar *c, int64_t type_size) {
  if (c->K > CUDA_SCALAR_KEYS)
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: keys of %lld channels, expected at most %d on a GPU", s->op,
                      (long long)c->K, CUDA_SCALAR_KEYS);
  const int64_t shared = cuda_scalar_shared(c->K, type_size);
  if (!is_decoded(c) && shared > comba_cuda_shared_bytes())
    return comba_fail(COMBA_ERROR_UNSUPPORTED,
                      "%s: keys of %lld channels in %s take %lld KB of shared memory a block, this GPU has %lld", s->op,
                      (long long)c->K, type_size == sizeof(float) ? "float32" : "bfloat16", (long long)shared >> 10,
                      (long long)comba_cuda_shared_bytes() >> 10);
  buffers b;
  const shape x = shape_of(c);
  const int64_t kept = cuda_scalar_lay_out_kept(&b, x, NULL, type_size);
  s->saved = is_decoded(c) ? 0 : 1;
  s->saved_shape[0] = {1, {kept}};
  s->saved_optional = true;
  s->forward_workspace = is_decoded(c) ? 0 : kept + cuda_scalar_lay_out_rest(&b, x, NULL, true, type_size);
  s->backward_workspace =
      kept + cuda_scalar_lay_out_rest(&b, x, NULL, false, type_size) + cuda_scalar_gradient_workspace(c, type_size);
  return COMBA_OK;
}

/* ---- Chunks --------------------------------------------------------------------------------------------------------- */

/* Shared memory of find_chunks: two sets of tiles of k, q and p, of which one is read while the other arrives, or M, R and what A is written
 * through. */
template <class T, bool delta> constexpr int chunk_bytes() {
  constexpr int tiles = 2 * (delta ? 3 : 2) * tile_elements<T> * (int)sizeof(T);
  constexpr int matrices = ((delta ? 2 * CHUNK * MATRIX_STRIDE : 0) + 4 * sheet_floats<CHUNK>)*(int)sizeof(float);
  return tiles > matrices ? tiles : matrices;
}

/* A block a slot: G, the factors, A and C. The first four warps have 16 rows of q k^T each, four more those of p k^T. */
template <class T, bool delta> static __global__ void __launch_bounds__(delta ? 256 : 128) find_chunks(const pass a) {
  constexpr int stride = tile_stride<T, TILE>;
  extern __shared__ int4 shared[];
  __shared__ double G[CHUNK];
  __shared__ float beta[CHUNK];
  float *M = (float *)shared, *R = M + CHUNK * MATRIX_STRIDE, *sheets = delta ? R + CHUNK * MATRIX_STRIDE : M;
  const int64_t slot = blockIdx.x;
  const int K = (int)a.s.K, q_stride = (int)a.c.q_heads * K, k_stride = (int)a.c.k_heads * K;
  int64_t head;
  const cuda_piece piece = piece_of_slot(a.s, slot, &head);
  const int64_t q_at = piece.row * q_stride + channel_of(a, head, a.c.q_heads, K);
  const int64_t k_at = piece.row * k_stride + channel_of(a, head, a.c.k_heads, K);
  const auto load = [&](T *to, const void *from, int64_t at, int stride, int columns) {
    tile_load_async<CHUNK, TILE, delta ? 256 : 128>(to, (const T *)from + at, stride, piece.count, columns,
                                                    a.keys_aligned);
  };
  const auto set_of = [&](int channel) {
    return (T *)shared + channel / TILE % 2 * (delta ? 3 : 2) * tile_elements<T>;
  };
  const auto load_set =
      [&](int channel) { /* 64 channels of k, q and p */
                         T *to = set_of(channel);
                         if (channel < K) {
                           load(to, a.c.k, k_at + channel, k_stride, K - channel);
                           if (a.b.A) load(to + tile_elements<T>, a.c.q, q_at + channel, q_stride, K - channel);
                           if (delta && a.c.p)
                             load(to + 2 * tile_elements<T>, a.c.p, k_at + channel, k_stride, K - channel);
                         }
                         close_copies();
      };
  load_set(0);
  const int warp = threadIdx.x / 32, first_row = warp % 4 * TILE_ROWS;
  const bool feedback = warp >= 4, other = delta && a.c.p;
  if (!warp) find_gates(a, piece, slot, head, G, beta);

  float sum[CHUNK / 8][4] = {};
  for (int channel = 0; channel < K; channel += TILE) {
    load_set(channel + TILE);
    wait_for_copies<1>();
    __syncthreads();
    const T *k = set_of(channel), *left = k + (feedback ? (other ? 2 : 0) : 1) * tile_elements<T>;
    if (feedback || a.b.A) tile_multiply<CHUNK, TILE, true>(sum, left + first_row * stride, stride, k, stride);
    __syncthreads();
  }

  if (!feedback && a.b.A) {
    tile_each<CHUNK>([&](int n, int i, int r, int column) {
      const int row = first_row + r;
      sum[n][i] = column <= row ? a.c.scale * decay(G[row] - G[column]) * beta[column] * sum[n][i] : 0;
    });
    tile_write_wide<CHUNK>((T *)a.b.A + slot * MATRIX + first_row * CHUNK, CHUNK, TILE_ROWS, CHUNK, false,
                           sheets + warp * sheet_floats<CHUNK>, sum);
  } else if (feedback) {
    tile_each<CHUNK>([&](int n, int i, int r, int column) {
      const int row = first_row + r;
      const double read = a.c.after_decay ? G[row] : (row ? G[row - 1] : 0);
      M[row * MATRIX_STRIDE + column] = column < row ? decay(read - G[column]) * sum[n][i] : 0;
    });
  }
  if (!delta) return;
  __syncthreads();
  find_resolvent(M, beta, R);
  T *to = (T *)a.b.correction + slot * MATRIX;
  for (int x = threadIdx.x * 2; x < MATRIX; x += blockDim.x * 2) {
    const int row = x / CHUNK, column = x % CHUNK;
    float value[2];
    for (int i = 0; i < 2; i++)
      value[i] = column + i < row ? R[row * MATRIX_STRIDE + column + i] * beta[column + i] : 0;
    store_pair(to + x, value[0], value[1]);
  }
}

/* ---- Output --------------------------------------------------------------------------------------------------------- */

/* A block has `groups` times 64 channels of a slot's output, four warps for each. Two sets of tiles are in shared memory: one is read while
 * the other arrives. */
template <class T, int groups>
static __global__ void __launch_bounds__(groups * 128, sizeof(T) == 2 ? 6 / groups : 1) find_output(const pass a) {
  constexpr int stride = tile_stride<T, TILE>, threads = groups * 128;
  extern __shared__ int4 shared[];
  const int K = (int)a.s.K, V = (int)a.s.V, in_slot = (V + groups * TILE - 1) / (groups * TILE);
  const int slices = (K + TILE - 1) / TILE, block_channel = blockIdx.x % in_slot * groups * TILE;
  const int64_t slot = blockIdx.x / in_slot;
  int64_t head;
  const cuda_piece piece = piece_of_slot(a.s, slot, &head);
  if (!piece.count) return;
  const int q_stride = (int)a.c.q_heads * K, v_stride = (int)a.c.v_heads * V;
  const T *q = (const T *)a.c.q + piece.row * q_stride + channel_of(a, head, a.c.q_heads, K);
  /* e, which without delta is v */
  const T *errors = a.s.delta ? (const T *)a.b.errors + slot * CHUNK * V
                              : (const T *)a.c.v + piece.row * v_stride + channel_of(a, head, a.c.v_heads, V);
  const T *states = (const T *)a.b.states + slot * K * V;
  /* q and S by 64 channels of K, last A and e */
  const auto copy = [&](int set) {
    T *to = (T *)shared + set % 2 * (1 + groups) * tile_elements<T>;
    const int first = set * TILE;
    const auto load = [&](const T *from, int stride, int rows, int columns, bool aligned) {
      tile_load_async<TILE, TILE, threads>(to, from, stride, rows, columns, aligned);
      to += tile_elements<T>;
    };
    if (set < slices)
      load(q + first, q_stride, piece.count, K - first, a.keys_aligned);
    else if (set == slices)
      load((const T *)a.b.A + slot * MATRIX, CHUNK, CHUNK, CHUNK, true);
#pragma unroll
    for (int g = 0; g < groups; g++) {
      const int channel = block_channel + g * TILE;
      if (set < slices)
        load(states + first * (int64_t)V + channel, V, K - first, V - channel, a.values_aligned);
      else if (set == slices)
        load(errors + channel, a.s.delta ? V : v_stride, piece.count, V - channel, a.values_aligned);
    }
    close_copies();
  };
  const int first_row = threadIdx.x % 128 / 32 * TILE_ROWS, group = threadIdx.x / 128;
  float sum[TILE / 8][4] = {};
  copy(0);
  for (int set = 0; set <= slices; set++) {
    copy(set + 1);
    wait_for_copies<1>();
    __syncthreads();
    if (set == slices) {
      const float *decay = a.b.factors + (slot * FACTORS + DECAY) * CHUNK + first_row;
      tile_each<TILE>([&](int n, int i, int row, int) { sum[n][i] *= a.c.scale * decay[row]; });
    }
    const T *left = (const T *)shared + set % 2 * (1 + groups) * tile_elements<T>;
    tile_multiply<TILE, TILE, false>(sum, left + first_row * stride, stride, left + (1 + group) * tile_elements<T>,
                                     stride);
    __syncthreads();
  }
  const int channel = block_channel + group * TILE, o_stride = (int)a.s.heads * V, rows = piece.count - first_row;
  T *o = (T *)a.c.o + (piece.row + first_row) * o_stride + head * V + channel;
  if (a.values_aligned)
    tile_write_wide<TILE>(o, o_stride, rows, V - channel, false,
                          (float *)shared + threadIdx.x / 32 * sheet_floats<TILE>, sum);
  else
    tile_write<TILE>(o, o_stride, rows, V - channel, false, false, sum);
}

template <class T, int groups> static void launch_output(const pass &a) {
  constexpr int bytes = 2 * (1 + groups) * tile_elements<T> * (int)sizeof(T), width = groups * TILE;
  comba_cuda_note(cudaFuncSetAttribute(find_output<T, groups>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                  "the scan over chunks");
  find_output<T, groups>
      <<<(unsigned)(a.s.slots * ((a.s.V + width - 1) / width)), groups * 128, bytes, comba_cuda_stream()>>>(a);
  comba_cuda_note(cudaGetLastError(), "the scan over chunks");
}

/* ---- Forward -------------------------------------------------------------------------------------------------------- */

template <class T> static pass pass_of(const cuda_scalar *c, const shape &s, const buffers &b) {
  const auto aligned = [](const void *p, int64_t width) {
    return (uintptr_t)p % 16 == 0 && width * (int64_t)sizeof(T) % 16 == 0;
  };
  return {*c, s, b, aligned(c->q, c->K) && aligned(c->k, c->K) && aligned(c->p, c->K),
          aligned(c->v, c->V) && aligned(c->o, c->V) && aligned(b.states, c->V)};
}

template <class T, bool delta> static void launch_chunks(const pass &a) {
  constexpr int bytes = chunk_bytes<T, delta>();
  comba_cuda_note(cudaFuncSetAttribute(find_chunks<T, delta>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                  "the scan over chunks");
  find_chunks<T, delta><<<(unsigned)a.s.slots, delta ? 256 : 128, bytes, comba_cuda_stream()>>>(a);
  comba_cuda_note(cudaGetLastError(), "the scan over chunks");
}

template <class T> static void advance(const pass &a) {
  a.s.delta ? launch_chunks<T, true>(a) : launch_chunks<T, false>(a);
  cuda_scalar_scan<T>(a);
}

template <class T> void cuda_scalar_advance(const cuda_scalar *c, const shape &s, const buffers &b) {
  advance<T>(pass_of<T>(c, s, b));
}

template <class T> void cuda_scalar_forward(const cuda_scalar *c, float *kept, float *workspace) {
  if (is_decoded(c)) return cuda_scalar_decode<T>(c);
  const shape s = shape_of(c);
  buffers b;
  const int64_t used = cuda_scalar_lay_out_kept(&b, s, kept ? kept : workspace, sizeof(T));
  cuda_scalar_lay_out_rest(&b, s, workspace + (kept ? 0 : used), true, sizeof(T));
  const pass a = pass_of<T>(c, s, b);
  if (is_one_chunk(c)) return cuda_scalar_forward_one_chunk<T>(a, kept);
  advance<T>(a);
  s.V > TILE ? launch_output<T, 2>(a) : launch_output<T, 1>(a);
}

template void cuda_scalar_advance<float>(const cuda_scalar *, const shape &, const buffers &);
template void cuda_scalar_advance<bfloat16>(const cuda_scalar *, const shape &, const buffers &);
template void cuda_scalar_forward<float>(const cuda_scalar *, float *, float *);
template void cuda_scalar_forward<bfloat16>(const cuda_scalar *, float *, float *);
