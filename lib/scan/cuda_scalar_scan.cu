/* The states of cuda_scalar.h from chunk to chunk. A warp has the state of 16 value channels, transposed, (16, K) in registers, and for
 * those channels nothing depends on another warp: with r, e and the rest transposed as well, (16, CHUNK),
 *   r = v - e^P (S p^T),  e = r - r C^T,  S' = e^{G_n} S + (e^{G_n - G} beta e) k
 * each product has its left factor in registers. Right factors are tiles of 64 x 64 that the block's warps share and that arrive in a ring
 * of buffers, several tiles ahead: for each chunk p by 64 channels, v, C, and k by 64 channels. */
#include "scan/cuda_fragment.h"
#include "scan/cuda_scalar_private.h"

enum { WARPS = 4, WARP_CHANNELS = 16, FACTOR_BYTES = FACTORS * CHUNK * (int)sizeof(float) };

template <class T> struct ring {
  static constexpr int tiles = sizeof(T) == sizeof(float) ? 4 : 8;
  static constexpr int elements = tile_elements<T> + FACTOR_BYTES / (int)sizeof(T);
  static constexpr int bytes = (tiles * elements + WARPS * row_scratch<T>)*(int)sizeof(T);
};

/* The place of a sequence's tiles: what is copied next. */
template <class T, int slices, bool delta> struct feeder {
  static constexpr int kinds = delta ? 2 * slices + 2 : slices + 1;
  static constexpr int VALUES = delta ? slices : 0, CORRECTION = delta ? slices + 1 : -1, KEYS = kinds - slices;
  T *tiles;
  int lane, head, channel; /* channel: the block's first */
  int step, kind, next;
  int row, count; /* of the piece at `step`: its first token, and how many */

  __device__ void move_to(const pass &a, int to) {
    step = to;
    if (to >= a.s.steps) return;
    const cuda_piece piece = piece_at(a.s, to, lane);
    row = (int)piece.row;
    count = piece.count;
  }

  __device__ void copy(const pass &a) {
    if (step < a.s.steps) {
      T *to = tiles + next * ring<T>::elements;
      const int64_t slot = ((int64_t)step * a.s.lanes + lane) * a.s.heads + head;
      if (kind == VALUES) {
        const int64_t stride = a.c.v_heads * a.s.V;
        const T *v = (const T *)a.c.v + row * stride + head / (a.s.heads / a.c.v_heads) * a.s.V + channel;
        tile_copy(to, v, stride, count, a.s.V - channel, a.values_aligned);
      } else if (kind == CORRECTION) {
        tile_copy(to, (const T *)a.b.correction + slot * MATRIX, CHUNK, CHUNK, CHUNK, true);
      } else {
        const int64_t stride = a.c.k_heads * a.s.K, first = (kind < KEYS ? kind : kind - KEYS) * TILE;
        const T *from = (const T *)(kind < KEYS && a.c.p ? a.c.p : a.c.k);
        from += row * stride + head / (a.s.heads / a.c.k_heads) * a.s.K + first;
        tile_copy(to, from, stride, count, a.s.K - first, a.keys_aligned);
      }
      if (kind == VALUES || kind == CORRECTION)
        for (int x = threadIdx.x; x < FACTOR_BYTES / 16; x += blockDim.x)
          copy_async((float *)(to + tile_elements<T>)+x * 4, a.b.factors + slot * FACTORS * CHUNK + x * 4, true);
      if (++kind == kinds) {
        kind = 0;
        move_to(a, step + 1);
      }
    }
    close_copies();
    next = (next + 1) % ring<T>::tiles;
  }
};

/* A block has up to 64 channels of a lane and head. */
template <class T, int slices, bool delta>
static __global__ void __launch_bounds__(WARPS * 32, sizeof(T) == sizeof(float) ? 1 : 2) scan_states(const pass a) {
  constexpr int stride = tile_stride<T, TILE>, tiles = ring<T>::tiles;
  extern __shared__ int4 shared[];
  const int64_t K = a.s.K, V = a.s.V;
  const int width = blockDim.x / 32 * WARP_CHANNELS, blocks = (int)((V + width - 1) / width);
  const int task = blockIdx.x / blocks, lane = task / (int)a.s.heads, head = task % (int)a.s.heads;
  const int block_channel = blockIdx.x % blocks * width;
  const int warp_channel = threadIdx.x / 32 * WARP_CHANNELS; /* in the block's */
  const int first_channel = block_channel + warp_channel;
  const int channels = max(0, min((int)WARP_CHANNELS, (int)V - first_channel));

  T *scratch = (T *)shared + tiles * ring<T>::elements + threadIdx.x / 32 * row_scratch<T>;

  feeder<T, slices, delta> feed;
  feed.tiles = (T *)shared;
  feed.lane = lane;
  feed.head = head;
  feed.channel = block_channel;
  feed.kind = feed.next = 0;
  feed.move_to(a, 0);
  for (int i = 0; i < tiles - 1; i++) feed.copy(a);
  /* The next tile. Behind the barrier nobody reads the last any more: its place takes a new one, and is followed by the next. */
  const auto next_tile = [&]() -> const T * {
    wait_for_copies<tiles - 2>();
    __syncthreads();
    feed.copy(a);
    return (const T *)shared + feed.next * ring<T>::elements;
  };

  /* The warp's place in the states of the caller. */
  const auto outside = [&](int64_t sequence) { return (sequence * a.s.heads + head) * K * V + first_channel; };

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
#pragma unroll
    for (int slice = 0; slice < slices; slice++)
      store_transposed<TILE>((T *)a.b.states + (slot * K + slice * TILE) * V + first_channel, V,
                             (int)(K - slice * TILE), channels, a.values_aligned, state[slice]);

    float e[CHUNK / 8][4] = {};
    if (delta) {
#pragma unroll
      for (int slice = 0; slice < slices; slice++)
        row_multiply<CHUNK, TILE, true>(e, state[slice], next_tile(), stride, scratch);
    }
    const T *tile = next_tile();
    const float *factors = (const float *)(tile + tile_elements<T>);
    tile_each<CHUNK>([&](int n, int i, int, int token) {
      const float v = load(tile + token * stride + warp_channel + row_channel(i / 2));
      e[n][i] = delta ? v - factors[READ * CHUNK + token] * e[n][i] : v;
    });
    if (delta) {
      tile = next_tile();
      factors = (const float *)(tile + tile_elements<T>);
      /* C is strictly lower: the later half of the tokens first, from all, then the earlier from itself */
      constexpr int half = CHUNK / 2, parts = half / 8;
      float correction[parts][4] = {}, earlier[parts][4] = {};
      row_multiply<half, CHUNK, true>(correction, e, tile + half * stride, stride, scratch);
      tile_each<half>([&](int n, int i, int, int) { e[parts + n][i] -= correction[n][i]; });
      row_multiply<half, half, true>(earlier, e, tile, stride, scratch);
      tile_each<half>([&](int n, int i, int, int) { e[n][i] -= earlier[n][i]; });
      store_transposed<CHUNK>((T *)a.b.errors + (slot * CHUNK * V + first_channel), V, CHUNK, channels,
                              a.values_aligned, e);
      tile_each<CHUNK>([&](int n, int i, int, int token) { e[n][i] *= factors[BETA * CHUNK + token]; });
    }
    tile_each<CHUNK>([&](int n, int i, int, int token) { e[n][i] *= factors[LEFT * CHUNK + token]; });

    const float left = factors[DECAY * CHUNK + CHUNK - 1];
#pragma unroll
    for (int slice = 0; slice < slices; slice++) {
      tile_each<TILE>([&](int n, int i, int, int) { state[slice][n][i] *= left; });
      row_multiply<TILE, CHUNK, false>(state[slice], e, next_tile(), stride, scratch);
    }
    if (!a.c.final_state) continue;
    const cuda_piece end = piece_at(a.s, step, lane); /* again: registers are scarce */
    if (!end.last) continue;
    float *final_state = a.c.final_state + outside(end.sequence);
#pragma unroll
    for (int slice = 0; slice < slices; slice++)
      store_transposed<TILE>(final_state + slice * TILE * V, V, (int)(K - slice * TILE), channels, false, state[slice]);
  }
}

template <class T, int slices, bool delta> static void launch(const pass &a) {
  const int64_t tasks = a.s.lanes * a.s.heads;
  const auto blocks = [&](int warps) { return (a.s.V + warps * WARP_CHANNELS - 1) / (warps * WARP_CHANNELS); };
  int warps = WARPS; /* fewer where that leaves processors idle, or channels */
  while (warps > 1 && (tasks * blocks(warps) < 128 || blocks(warps / 2) == 1)) warps /= 2;
  const auto kernel = scan_states<T, slices, delta>;
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, ring<T>::bytes),
                  "the scan over chunks");
  kernel<<<(unsigned)(tasks * blocks(warps)), warps * 32, ring<T>::bytes, comba_cuda_stream()>>>(a);
  comba_cuda_note(cudaGetLastError(), "the scan over chunks");
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
