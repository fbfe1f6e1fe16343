/* ops/grid_move.h for kernels: the threads of a row have a token, which they read or write once for all directions. */
#ifndef COMBA_OPS_CUDA_GRID_H
#define COMBA_OPS_CUDA_GRID_H

#include "ops/cuda_row_span.h"
#include "ops/cuda_rows.h"
#include "ops/grid_order.h"

/* The rows, in a tensor of all directions, where token `row` of (B,N) stands in each of them. */
struct cuda_grid_places {
  int64_t row[COMBA_GRID_DIRECTIONS];

  __device__ cuda_grid_places(const comba_grid_scan &g, int64_t token) {
    const int64_t b = token / g.tokens;
#pragma unroll
    for (int i = 0; i < COMBA_GRID_DIRECTIONS; i++)
      if (i < g.directions)
        row[i] = (i * g.batch + b) * g.tokens + comba_grid_place(&g, g.order[i], token - b * g.tokens);
  }
};

template <class L, class T>
__global__ void grid_spread_kernel(comba_grid_scan g, const T *from, float scale, bool accumulate, T *to) {
  const int64_t row = own_row<L>();
  if (row >= g.batch * g.tokens) return;
  const cuda_grid_places place(g, row);
  for (int64_t first = 0; first < g.channels; first += L::SPAN) {
    row_span<L, T> x;
    x.load(from + row * g.channels, first, g.channels);
#pragma unroll
    for (int i = 0; i < COMBA_GRID_DIRECTIONS; i++)
      if (i < g.directions)
        put_span<L>(to + place.row[i] * g.channels, first, g.channels, accumulate, [&](int k) { return scale * x[k]; });
  }
}

template <class L, class T>
__global__ void grid_gather_kernel(comba_grid_scan g, const T *from, float scale, bool accumulate, T *to) {
  const int64_t row = own_row<L>();
  if (row >= g.batch * g.tokens) return;
  const cuda_grid_places place(g, row);
  for (int64_t first = 0; first < g.channels; first += L::SPAN) {
    row_span<L, T> x[COMBA_GRID_DIRECTIONS];
#pragma unroll
    for (int i = 0; i < COMBA_GRID_DIRECTIONS; i++)
      if (i < g.directions) x[i].load(from + place.row[i] * g.channels, first, g.channels);
    put_span<L>(to + row * g.channels, first, g.channels, accumulate, [&](int k) {
      float sum = x[0][k];
#pragma unroll
      for (int i = 1; i < COMBA_GRID_DIRECTIONS; i++)
        if (i < g.directions) sum += x[i][k];
      return scale * sum;
    });
  }
}

/* Gates have a few channels. */
template <class F> void with_grid_layout(int64_t d, bool packs, F f) {
  if (!packs && d <= 8)
    f(row_layout<1, 1, 8>());
  else
    with_row_layout(d, packs, f);
}

/* to (directions B, N, d), direction-major, = or += scale * from (B,N,d) in each order */
template <class T> void cuda_grid_spread(const comba_grid_scan &g, const T *from, float scale, bool accumulate, T *to) {
  with_grid_layout(g.channels, cuda_rows_pack(g.channels, from, to), [&](auto layout) {
    typedef decltype(layout) L;
    grid_spread_kernel<L><<<row_blocks<L>(g.batch * g.tokens), row_threads<L>(), 0, comba_cuda_stream()>>>(
        g, from, scale, accumulate, to);
  });
  comba_cuda_note(cudaGetLastError(), "tokens in their orders");
}

/* to (B,N,d) = or += scale * sum over directions of from (directions B, N, d), each token back in its place */
template <class T> void cuda_grid_gather(const comba_grid_scan &g, const T *from, float scale, bool accumulate, T *to) {
  with_grid_layout(g.channels, cuda_rows_pack(g.channels, from, to), [&](auto layout) {
    typedef decltype(layout) L;
    grid_gather_kernel<L><<<row_blocks<L>(g.batch * g.tokens), row_threads<L>(), 0, comba_cuda_stream()>>>(
        g, from, scale, accumulate, to);
  });
  comba_cuda_note(cudaGetLastError(), "tokens back in their places");
}

#endif
