/* The states of cuda_scalar.h from chunk to chunk. A warp has the state of 16 value channels, transposed, (16, K) in registers, and for
 * those channels nothing depends on another warp: with r, e and the rest transposed as well, (16, CHUNK),
 *   r = v - e^P (S p^T),  e = r - r C^T,  S' = e^{G_n} S + (e^{G_n - G} beta e) k
 * each product has its left factor in registers. Right factors are tiles of 64 x 64 that the block's warps share, for each chunk p by 64
 * channels, v, C, and k by 64 channels. Each kind of tile has a place of its own (few kinds: two), so that addresses are constants of the
 * program, and is copied there for the next chunk as soon as all warps have read this one's. */
#include "scan/cuda_fragment.h"
#include "scan/cuda_scalar_private.h"

enum { WARPS = 4, WARP_CHANNELS = 16, FACTOR_FLOATS = FACTORS * CHUNK };

template <class T, int slices, bool delta> struct scan_tiles {
  static constexpr int kinds = delta ? 2 * slices + 2 : slices + 1;
  static constexpr int VALUES = delta ? slices : 0, CORRECTION = delta ? slices + 1 : -1, KEYS = kinds - slices;
  static constexpr int depth = kinds < 5 ? 2 : 1; /* chunks that have tiles */
  static constexpr int places = depth * kinds, factor_places = depth + 1;
  static constexpr int bytes = (places * tile_elements<T> + WARPS * row_scratch<T>)*(int)sizeof(T) +
                               factor_places * FACTOR_FLOATS * (int)sizeof(float);
};

/* Copies the tiles of a lane and head; `step` is the chunk that is copied next. `whole`: tiles are full but for tokens that are missing, and
 * the block has all its warps. */
template <class T, int slices, bool delta, bool whole> struct feeder {
  typedef scan_tiles<T, slices, delta> t;
  T *tiles;
  float *factors;
  int lane, head;
  int key, value;       /* the head's first channel in a row of k, and the block's in one of v */
  int step, row, count; /* of the piece at `step`: its first token, and how many */

  __device__ T *place(int at, int kind) const {
    return tiles + (at % t::depth * t::kinds + kind) * tile_elements<T>;
  }
  __device__ float *factors_of(int at) const {
    return factors + at % t::factor_places * FACTOR_FLOATS;
  }

  __device__ void move_to(const pass &a, int to) {
    step = to;
    if (to >= a.s.steps) return;
    const cuda_piece piece = piece_at(a.s, to, lane);
    row = (int)piece.row;
    count = piece.count;
  }

  __device__ void copy_tile(T *to, const T *from, int64_t stride, int rows, int64_t columns, bool aligned) const {
    if (whole)
      tile_load_async<TILE, TILE, WARPS * 32>(to, from, (int)stride, rows, TILE, true);
    else
      tile_copy(to, from, stride, rows, columns, aligned);
  }

  __device__ void copy(const pass &a, int kind) const {
    if (step < a.s.steps) {
      T *to = place(step, kind);
      const int64_t slot = ((int64_t)step * a.s.lanes + lane) * a.s.heads + head;
      if (kind == t::VALUES) {
        const int64_t stride = a.c.v_heads * a.s.V;
        copy_tile(to, (const T *)a.c.v + row * stride + value, stride, count, a.s.V - value % a.s.V, a.values_aligned);
        const float *from = a.b.factors + slot * FACTOR_FLOATS;
        for (int x = threadIdx.x * 4; x < FACTOR_FLOATS; x += (whole ? WARPS * 32 : blockDim.x) * 4)
          copy_async(factors_of(step) + x, from + x, true);
      } else if (kind == t::CORRECTION) {
        copy_tile(to, (const T *)a.b.correction + slot * MATRIX, CHUNK, CHUNK, CHUNK, true);
      } else {
        const int64_t stride = a.c.k_heads * a.s.K;
        const int first = (kind < t::KEYS ? kind : kind - t::KEYS) * TILE;
        const T *from = (const T *)(kind < t::KEYS && a.c.p ? a.c.p : a.c.k);
        copy_tile(to, from + row * stride + key + first, stride, count, a.s.K - first, a.keys_aligned);
      }
    }
    close_copies();
  }
};

/* A block has up to 64 channels of a lane and head. */
template <class T, int slices, bool delta, bool whole>
static __global__ void __launch_bounds__(WARPS * 32, sizeof(T) == sizeof(float) ? 1 : 2) scan_states(const pass a) {
  typedef scan_tiles<T, slices, delta> t;
  constexpr int stride = tile_stride<T, TILE>;
  extern __shared__ int4 shared[];
  const int64_t K = a.s.K, V = a.s.V;
  const int width = whole ? WARPS * WARP_CHANNELS : blockDim.x / 32 * WARP_CHANNELS;
  const int blocks = (int)((V + width - 1) / width);
  const int task = blockIdx.x / blocks, lane = task / (int)a.s.heads, head = task % (int)a.s.heads;
  const int block_channel = blockIdx.x % blocks * width;
  const int warp_channel = threadIdx.x / 32 * WARP_CHANNELS; /* in the block's */
  const int first_channel = block_channel + warp_channel;
  const int channels = whole ? WARP_CHANNELS : max(0, min((int)WARP_CHANNELS, (int)V - first_channel));

  feeder<T, slices, delta, whole> feed;
  feed.tiles = (T *)shared;
  feed.factors = (float *)(feed.tiles + t::places * tile_elements<T>);
  feed.lane = lane;
  feed.head = head;
  feed.key = head / (int)(a.s.heads / a.c.k_heads) * (int)K;
  feed.value = head / (int)(a.s.heads / a.c.v_heads) * (int)V + block_channel;
  T *scratch = (T *)(feed.factors + t::factor_places * FACTOR_FLOATS) + threadIdx.x / 32 * row_scratch<T>;
  for (int step = 0; step < t::depth; step++) {
    feed.move_to(a, step);
    for (int kind = 0; kind < t::kinds - (step == t::depth - 1); kind++) feed.copy(a, kind);
  }
  /* The tile of a kind. Behind the barrier nobody reads the one before any more: its place takes the same of a later chunk. */
  const auto next_tile = [&](int step, int kind) -> const T * {
    wait_for_copies<t::places - 2>();
    __syncthreads();
    feed.copy(a, (kind + t::kinds - 1) % t::kinds);
    if (!kind) feed.move_to(a, step + t::depth);
    return feed.place(step, kind);
  };

  /* The warp's place in the states of the caller. */
  const auto outside = [&](int64_t sequence) { return (sequence * a.s.heads + head) * K * V + first_channel; };
  const int in_quad = threadIdx.x % 4 * 2; /* the first token of this lane's in eight */

  float state[slices][TILE / 8][4] = {};
  for (int step = 0; step < a.s.steps; step++) {
    const int64_t slot = ((int64_t)step * a.s.lanes + lane) * a.s.heads + head;
    const cuda_piece piece = piece_at(a.s, step, lane);
    if (piece.first) {
      const float *initial = a.c.initial_state;
      if (initial) initial += outside(piece.sequence);
#pragma unroll
      for (int slice = 0; slice < slices; slice++)
        tile_each<TILE>([&](int n, int i, int, int column) {
          const int64_t k = slice * TILE + column;
          const int channel = row_channel(i / 2);
          state[slice][n][i] = initial && k < K && channel < channels ? initial[k * V + channel] : 0;
        });
    }
    float e[CHUNK / 8][4] = {};
#pragma unroll
    for (int slice = 0; slice < slices; slice++) {
      store_transposed<TILE, whole>((T *)a.b.states + (slot * K + slice * TILE) * V + first_channel, V,
                                    (int)(K - slice * TILE), channels, a.values_aligned, state[slice]);
      if (delta) row_multiply<CHUNK, TILE, true>(e, state[slice], next_tile(step, slice), stride, scratch);
    }
    const T *values = next_tile(step, t::VALUES) + warp_channel;
    const float *factors = feed.factors_of(step) + in_quad;
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n++) {
      const float2 read = *(const float2 *)(factors + READ * CHUNK + n * 8);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float2 v = load_channels(values + (n * 8 + in_quad + i) * stride);
        e[n][i] = delta ? v.x - (i ? read.y : read.x) * e[n][i] : v.x;
        e[n][2 + i] = delta ? v.y - (i ? read.y : read.x) * e[n][2 + i] : v.y;
      }
    }
    if (delta) {
      const T *tile = next_tile(step, t::CORRECTION);
      /* C is strictly lower: the later half of the tokens first, from all, then the earlier from itself */
      constexpr int half = CHUNK / 2, parts = half / 8;
      float correction[parts][4] = {}, earlier[parts][4] = {};
      row_multiply<half, CHUNK, true>(correction, e, tile + half * stride, stride, scratch);
      tile_each<half>([&](int n, int i, int, int) { e[parts + n][i] -= correction[n][i]; });
      row_multiply<half, half, true>(earlier, e, tile, stride, scratch);
      tile_each<half>([&](int n, int i, int, int) { e[n][i] -= earlier[n][i]; });
      store_transposed<CHUNK, whole>((T *)a.b.errors + slot * CHUNK * V + first_channel, V, CHUNK, channels,
                                     a.values_aligned, e);
    }
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n++) { /* what the chunk leaves in the state */
      const float2 beta = *(const float2 *)(factors + BETA * CHUNK + n * 8);
      const float2 left = *(const float2 *)(factors + LEFT * CHUNK + n * 8);
#pragma unroll
      for (int i = 0; i < 4; i++) e[n][i] *= i % 2 ? beta.y * left.y : beta.x * left.x;
    }
    const float left = feed.factors_of(step)[DECAY * CHUNK + CHUNK - 1];
#pragma unroll
    for (int slice = 0; slice < slices; slice++) {
      tile_each<TILE>([&](int n, int i, int, int) { state[slice][n][i] *= left; });
      row_multiply<TILE, CHUNK, false>(state[slice], e, next_tile(step, t::KEYS + slice), stride, scratch);
    }
    if (!a.c.final_state) continue;
    const cuda_piece end = piece_at(a.s, step, lane); /* again: registers are scarce */
    if (!end.last) continue;
    float *final_state = a.c.final_state + outside(end.sequence);
#pragma unroll
    for (int slice = 0; slice < slices; slice++)
      store_transposed<TILE, false>(final_state + slice * TILE * V, V, (int)(K - slice * TILE), channels, false,
                                    state[slice]);
  }
}

template <class T, int slices, bool delta, bool whole> static void launch(const pass &a, int warps, int64_t grid) {
  const auto kernel = scan_states<T, slices, delta, whole>;
  constexpr int bytes = scan_tiles<T, slices, delta>::bytes;
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                  "the scan over chunks");
  kernel<<<(unsigned)grid, warps * 32, bytes, comba_cuda_stream()>>>(a);
  comba_cuda_note(cudaGetLastError(), "the scan over chunks");
}

template <class T, int slices, bool delta> static void launch(const pass &a) {
  const int64_t tasks = a.s.lanes * a.s.heads;
  const auto blocks = [&](int warps) { return (a.s.V + warps * WARP_CHANNELS - 1) / (warps * WARP_CHANNELS); };
  int warps = WARPS; /* fewer where that leaves processors idle, or channels */
  while (warps > 1 && (tasks * blocks(warps) < 128 || blocks(warps / 2) == 1)) warps /= 2;
  const bool full = a.s.K == slices * TILE && a.s.V % (WARPS * WARP_CHANNELS) == 0;
  if (sizeof(T) == 2 && full && warps == WARPS && a.keys_aligned && a.values_aligned)
    launch<T, slices, delta, sizeof(T) == 2>(a, warps, tasks * blocks(warps));
  else
    launch<T, slices, delta, false>(a, warps, tasks * blocks(warps));
}

template <class T> void cuda_scalar_scan(const pass &a) {
  const int64_t slices = (a.s.K + TILE - 1) / TILE;
  if (slices == 1)
    a.s.delta ? launch<T, 1, true>(a) : launch<T, 1, false>(a);
  else if (slices == 2)
    a.s.delta ? launch<T, 2, true>(a) : launch<T, 2, false>(a);
  else
    a.s.delta ? launch<T, 4, true>(a) : launch<T, 4, false>(a);
}

template void cuda_scalar_scan<float>(const pass &);
template void cuda_scalar_scan<bfloat16>(const pass &);
