/* What a warp keeps in registers from one product to the next, spread as mma spreads its results (cuda_tile.h): rows that are the left
 * factor of a product, and their transpose in memory. And tiles of 64 x 64 that are copied to shared memory while others are read. */
#ifndef COMBA_SCAN_CUDA_FRAGMENT_H
#define COMBA_SCAN_CUDA_FRAGMENT_H

#include "scan/cuda_tile.h"

enum { TILE = 64 };
template <class T> constexpr int tile_elements = TILE *tile_stride<T, TILE>;

/* tile_load of TILE x TILE, which goes on meanwhile where rows are aligned, by any number of threads. */
template <class T>
static __device__ inline void tile_copy(T *to, const T *from, int64_t stride, int count, int64_t columns,
                                        bool aligned) {
  constexpr int piece = 16 / sizeof(T), pieces = TILE / piece, to_stride = tile_stride<T, TILE>;
  if (!aligned) return tile_load<TILE, TILE>(to, from, stride, count, columns, false);
  for (int x = threadIdx.x; x < TILE * pieces; x += blockDim.x) {
    const int row = x / pieces, column = x % pieces * piece;
    const bool there = row < count && column < columns;
    copy_async(to + row * to_stride + column, there ? from + row * stride + column : from, there);
  }
}

/* ---- Products ------------------------------------------------------------------------------------------------------- */

static __device__ inline uint32_t pair_bits(float x, float y) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

/* sum [N / 8] (16, N) += a b: a [K / 8] (16, K) in registers, rounded to T; b (K, N), or its transpose (N, K), in shared memory. float needs a's place
 * in shared memory as well, `scratch`, row_scratch elements of the warp's own. */
template <class T> constexpr int row_scratch = sizeof(T) == sizeof(float) ? TILE_ROWS *tile_stride<T, TILE> : 0;
template <int N, int K, bool transpose_b>
static __device__ inline void row_multiply(float (*sum)[4], const float (*a)[4], const bfloat16 *b, int b_stride,
                                           bfloat16 *) {
  const int lane = threadIdx.x % 32, row = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < K; k += 16) {
    const float(&near)[4] = a[k / 8], (&far)[4] = a[k / 8 + 1];
    const uint32_t left[4] = {pair_bits(near[0], near[1]), pair_bits(near[2], near[3]), pair_bits(far[0], far[1]),
                              pair_bits(far[2], far[3])};
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      uint32_t right[4];
      if (transpose_b)
        load_matrices<false>(right, b + (n + high + row) * b_stride + k + low);
      else
        load_matrices<true>(right, b + (k + low + row) * b_stride + n + high);
      multiply_add(sum[n / 8], left, right[0], right[1]);
      multiply_add(sum[n / 8 + 1], left, right[2], right[3]);
    }
  }
}

template <int N, int K, bool transpose_b>
static __device__ inline void row_multiply(float (*sum)[4], const float (*a)[4], const float *b, int b_stride,
                                           float *scratch) {
  __syncwarp();
  tile_store<K>(scratch, *(const float(*)[K / 8][4]) a);
  __syncwarp();
  tile_multiply<N, K, transpose_b>(*(float(*)[N / 8][4]) sum, scratch, tile_stride<float, K>, b, b_stride);
}

/* ---- Transposes ----------------------------------------------------------------------------------------------------- */

/* The channel, of a warp's 16, in each of this lane's two rows: so numbered that the transpose puts four neighbours into a lane. */
static __device__ inline int row_channel(int half) {
  const int row = threadIdx.x % 32 / 4;
  return row / 2 * 4 + half * 2 + row % 2;
}

/* Of a row whose first element is the warp's first channel, those two of this lane. */
static __device__ inline float2 load_channels(const float *row) {
  return make_float2(row[row_channel(0)], row[row_channel(1)]);
}
static __device__ inline float2 load_channels(const bfloat16 *row) {
  const int in_half = threadIdx.x % 32 / 4;
  const uint2 four = *(const uint2 *)(row + in_half / 2 * 4);
  const uint32_t select = in_half % 2 ? 0x3244 : 0x1044; /* the upper or lower half of a word, above zeros */
  return make_float2(__uint_as_float(__byte_perm(four.x, 0, select)), __uint_as_float(__byte_perm(four.y, 0, select)));
}

/* Of an 8 x 8 matrix of bfloat16, lane l gives row l / 4, columns 2 (l % 4) and the next, and gets the same of the transpose. */
static __device__ inline uint32_t transpose_matrix(uint32_t bits) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(bits));
  return result;
}

/* What depends on these is computed here each time: out of a loop it would take registers from the state. */
static __device__ inline void keep_in_place(int &rows, int &channels) {
  asm volatile("" : "+r"(rows), "+r"(channels));
}

/* to (rows, channels) = the transpose of the warp's (16, N), whose rows are channels as row_channel numbers them. Stores what is below
 * `rows` <= N and `channels` <= 16; `aligned`: rows begin at multiples of four elements and hold a multiple of them; `whole`: that, and
 * nothing is cut off. */
template <int N, bool whole>
static __device__ inline void store_transposed(float *to, int64_t stride, int rows, int channels, bool,
                                               const float (&sum)[N / 8][4]) {
  const int column = threadIdx.x % 4 * 2;
  keep_in_place(rows, channels);
#pragma unroll
  for (int n = 0; n < N / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = n * 8 + column + i % 2, channel = row_channel(i / 2);
      if (row < rows && channel < channels) to[row * stride + channel] = sum[n][i];
    }
}
template <int N, bool whole>
static __device__ inline void store_transposed(bfloat16 *to, int64_t stride, int rows, int channels, bool aligned,
                                               const float (&sum)[N / 8][4]) {
  const int lane = threadIdx.x % 32, channel = lane % 4 * 4;
  if (whole) to += lane / 4 * stride + channel;
#pragma unroll
  for (int n = 0; n < N / 8; n++) {
    const uint32_t low = transpose_matrix(pair_bits(sum[n][0], sum[n][1]));
    const uint32_t high = transpose_matrix(pair_bits(sum[n][2], sum[n][3]));
    if (whole) {
      __stcg((uint2 *)to, make_uint2(low, high)); /* one access: of a plain store the compiler makes two */
      to += 8 * stride;
      continue;
    }
    const int row = n * 8 + lane / 4;
    if (row >= rows || channel >= channels) continue;
    bfloat16 *place = to + row * stride + channel;
    if (aligned) {
      *(uint2 *)place = make_uint2(low, high);
    } else {
      bfloat16 part[4];
      memcpy(part, &low, sizeof low);
      memcpy(part + 2, &high, sizeof high);
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (channel + j < channels) place[j] = part[j];
    }
  }
}

#endif
