/* Operators over rows that read each row once: a group of threads holds it in registers between the sum over it and what uses the sum. */
#ifndef COMBA_OPS_CUDA_ROW_SPAN_H
#define COMBA_OPS_CUDA_ROW_SPAN_H

#include "core/cuda_map.h"

/* LANES threads hold SPAN values: each has PACKETS packets of N, LANES N apart. A block is GROUPS rows, several to a warp where they are
 * short. Longer rows are read span by span, and then again. */
template <int N_, int PACKETS_, int LANES_> struct row_layout {
  enum {
    N = N_,
    PACKETS = PACKETS_,
    LANES = LANES_,
    SPAN = N * PACKETS * LANES,
    GROUPS = LANES <= 32 ? 128 / LANES : 1
  };
};

/* Calls f with the layout for rows of d values; `packs`: d is a multiple of 8 and all rows are aligned to 16 bytes. */
template <class F> void with_row_layout(int64_t d, bool packs, F f) {
  if (!packs)
    f(row_layout<1, 8, 32>());
  else if (d <= 64)
    f(row_layout<8, 1, 8>());
  else if (d <= 128)
    f(row_layout<4, 1, 32>());
  else if (d <= 256)
    f(row_layout<8, 1, 32>());
  else if (d <= 512)
    f(row_layout<4, 1, 128>());
  else if (d <= 1024)
    f(row_layout<8, 1, 128>());
  else if (d <= 2048)
    f(row_layout<8, 1, 256>());
  else
    f(row_layout<8, 2, 256>());
}
template <class... P> static bool cuda_rows_pack(int64_t d, const P *...rows) {
  return d % 8 == 0 && (comba_cuda_aligned(rows, 16) && ...);
}

template <class L> static dim3 row_blocks(int64_t rows) {
  return dim3((unsigned)((rows + L::GROUPS - 1) / L::GROUPS));
}
template <class L> static dim3 row_threads() {
  return dim3(L::LANES, L::GROUPS);
}
template <class L> __device__ inline int64_t own_row() {
  return (int64_t)blockIdx.x * L::GROUPS + threadIdx.y;
}
/* The sum over the threads of a row, in each of them. Rows of a warp need not be summed at the same time. `turn` counts the calls of a
 * kernel: what two that follow one another meet in lies apart, so that a call needs one barrier. */
template <class L> __device__ inline float row_sum(float value, int turn) {
  if constexpr (L::LANES > 32) {
    __shared__ float part[2][L::LANES / 32];
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) part[turn % 2][threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int warp = 0; warp < L::LANES / 32; warp++) value += part[turn % 2][warp];
    return value;
  } else {
    constexpr unsigned lanes = ~0u >> (32 - L::LANES);
    const unsigned mask = lanes << (threadIdx.y * L::LANES % 32);
    for (int offset = L::LANES / 2; offset; offset /= 2) value += __shfl_xor_sync(mask, value, offset);
    return value;
  }
}

/* A thread's part of the values [first, first + SPAN) of a row of d; zero behind its end */
template <class L, class T> struct row_span {
  unread<T, L::N> values[L::PACKETS];

  static __device__ int64_t column(int64_t first, int k) {
    return first + (k * L::LANES + (int)threadIdx.x) * L::N;
  }
  __device__ void load(const T *row, int64_t first, int64_t d) {
#pragma unroll
    for (int k = 0; k < L::PACKETS; k++) {
      const int64_t j = column(first, k);
      values[k].load(j < d, row + j);
    }
  }
  /* value `i` of those that this thread has */
  __device__ float operator[](int i) const {
    return values[i / L::N].read()[i % L::N];
  }
};

/* row[j] = or += f(i) for the columns j of this thread, i counting them */
template <class L, class T, class F>
__device__ inline void put_span(T *row, int64_t first, int64_t d, bool accumulate, F f) {
#pragma unroll
  for (int k = 0; k < L::PACKETS; k++) {
    const int64_t j = row_span<L, T>::column(first, k);
    float result[L::N];
#pragma unroll
    for (int i = 0; i < L::N; i++) result[i] = f(k * L::N + i);
    if (j < d) put_packet<L::N>(row + j, result, accumulate);
  }
}

/* ---- Sums over rows, for the gradients of weights ------------------------------------------------------------------- */

/* Blocks of a backward pass that leave a part of the sum each: a multiple of the `turns` weights which rows take in turn, so that all
 * rows of a block share one. As many as a multiprocessor has registers for, five with a row a warp and six with a row a block, on the
 * 132 of an H100: all are under way at once, each reads a row ahead. */
static inline constexpr int row_blocks_at_once(bool whole_block) {
  return whole_block ? 6 : 5;
}
/* For the launch bounds of such a pass, where its spans leave so many registers */
template <class L, class T> constexpr int row_blocks_at_once() {
  return L::PACKETS == 1 && L::LANES <= 128 && sizeof(T) == 2 ? row_blocks_at_once(L::LANES == 128) : 1;
}
static inline int64_t row_parts(int64_t rows, int64_t turns, int64_t d) {
  const int64_t blocks = 132 * row_blocks_at_once(d > 256), most = (rows + turns - 1) / turns;
  const int64_t rounds = blocks / turns > 0 ? blocks / turns : 1;
  return turns * (rounds < most ? rounds : most);
}
/* Rows of a thread's group: from part_row on, part_step apart. */
template <class L> __device__ inline int64_t part_row(int64_t turns) {
  return blockIdx.x % turns + (blockIdx.x / turns * L::GROUPS + threadIdx.y) * turns;
}
template <class L> __device__ inline int64_t part_step() {
  return (int64_t)gridDim.x * L::GROUPS;
}
/* partial[j] = the sum of a block's groups, where partial has d columns and sum[i] is that of the thread's i-th; for all threads of a
 * block at once */
template <class L>
__device__ inline void put_part(float *partial, int64_t first, int64_t d, const float (&sum)[L::N * L::PACKETS]) {
  __shared__ float meet[L::GROUPS][L::SPAN];
  if (L::GROUPS > 1) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++)
      meet[threadIdx.y][(i / L::N * L::LANES + threadIdx.x) * L::N + i % L::N] = sum[i];
    __syncthreads();
    for (int i = threadIdx.y * L::LANES + threadIdx.x; i < L::SPAN && first + i < d; i += L::LANES * L::GROUPS) {
      float total = 0;
      for (int group = 0; group < L::GROUPS; group++) total += meet[group][i];
      partial[first + i] = total;
    }
  } else {
    put_span<L>(partial, first, d, false, [&](int i) { return sum[i]; });
  }
}

/* ---- Maps with a factor of each row ---------------------------------------------------------------------------------- */

template <class L, class Y, class F, class... X>
__global__ void map_rows_kernel(int64_t rows, int64_t d, Y *y, F f, const X *...inputs) {
  const int64_t row = own_row<L>();
  if (row >= rows) return;
  const auto of_row = [&](auto... values) { return f(row, values...); };
  for (int64_t first = 0; first < d; first += L::SPAN)
#pragma unroll
    for (int k = 0; k < L::PACKETS; k++) {
      const int64_t j = row_span<L, Y>::column(first, k), at = row * d + j;
      if (j < d) map_packets<L::N>(y + at, false, of_row, load_packet<L::N>(inputs + at)...);
    }
}
/* y[row][j] = f(row, inputs[row][j]...) */
template <class Y, class F, class... X> void comba_map_rows(int64_t rows, int64_t d, Y *y, F f, const X *...inputs) {
  with_row_layout(d, cuda_rows_pack(d, y, inputs...), [&](auto layout) {
    typedef decltype(layout) L;
    map_rows_kernel<L><<<row_blocks<L>(rows), row_threads<L>(), 0, comba_cuda_stream()>>>(rows, d, y, f, inputs...);
  });
  comba_cuda_note(cudaGetLastError(), "a map of rows");
}

/* Rows (tokens, heads) of d: a = or += dy and b = or += factor(h) dy, where they are wanted; part (blocks): what a block adds to the sum
 * of <x, dy> of the head that its rows share. */
template <class L, class T, class F>
__global__ void scale_gradient_kernel(const T *x, const T *dy, int64_t rows, int64_t heads, int64_t d, F factor,
                                      map_target<T> a, map_target<T> b, float *part) {
  const float scale = factor((int64_t)blockIdx.x % heads);
  float sum = 0;
  for (int64_t row = part_row<L>(heads); row < rows; row += part_step<L>())
    for (int64_t first = 0; first < d; first += L::SPAN) {
      row_span<L, T> value, gradient;
      gradient.load(dy + row * d, first, d);
      if (part) {
        value.load(x + row * d, first, d);
#pragma unroll
        for (int i = 0; i < L::N * L::PACKETS; i++) sum += value[i] * gradient[i];
      }
      if (a.data) put_span<L>(a.data + row * d, first, d, a.accumulate, [&](int i) { return gradient[i]; });
      if (b.data) put_span<L>(b.data + row * d, first, d, b.accumulate, [&](int i) { return scale * gradient[i]; });
    }
  if (!part) return;
  __shared__ float meet[L::GROUPS];
  sum = row_sum<L>(sum, 0);
  if (!threadIdx.x) meet[threadIdx.y] = sum;
  __syncthreads();
  if (threadIdx.x || threadIdx.y) return;
  sum = 0;
  for (int group = 0; group < L::GROUPS; group++) sum += meet[group];
  part[blockIdx.x] = sum;
}
/* and sum (heads) = or += outer(h) times the sums of <x, dy>, if it is wanted; `part`: row_parts(tokens heads, heads, d) floats */
template <class T, class F, class G>
void comba_scale_gradient(const T *x, const T *dy, int64_t tokens, int64_t heads, int64_t d, F factor, map_target<T> a,
                          map_target<T> b, float *part, G outer, bool accumulate, float *sum) {
  const int64_t rows = tokens * heads, parts = row_parts(rows, heads, d);
  with_row_layout(d, cuda_rows_pack(d, x, dy, a.data, b.data), [&](auto layout) {
    typedef decltype(layout) L;
    scale_gradient_kernel<L><<<(unsigned)parts, row_threads<L>(), 0, comba_cuda_stream()>>>(
        x, dy, rows, heads, d, factor, a, b, sum ? part : NULL);
  });
  comba_cuda_note(cudaGetLastError(), "gradients of scaled rows");
  if (sum) comba_cuda_sum_products(part, parts / heads, heads, outer, accumulate, sum);
}

#endif
