/* ops/grid_move.h for kernels: a warp a token. */
#ifndef COMBA_OPS_CUDA_GRID_H
#define COMBA_OPS_CUDA_GRID_H

#include "ops/cuda_rows.h"
#include "ops/grid_order.h"

/* to (directions B, N, d), direction-major, = or += scale * from (B,N,d) in each order */
template <class T> void cuda_grid_spread(const comba_grid_scan &g, const T *from, float scale, bool accumulate, T *to) {
  comba_each_row(g.directions * g.batch * g.tokens, [=] __device__(int64_t row, int64_t lane) {
    const int64_t place = row % g.tokens, b = row / g.tokens % g.batch, direction = row / g.tokens / g.batch;
    const T *in = from + (b * g.tokens + comba_grid_token(&g, g.order[direction], place)) * g.channels;
    T *out = to + row * g.channels;
    for (int64_t j = lane; j < g.channels; j += 32) put(out + j, scale * load(in + j), accumulate);
  });
}

/* to (B,N,d) = or += scale * sum over directions of from (directions B, N, d), each token back in its place */
template <class T> void cuda_grid_gather(const comba_grid_scan &g, const T *from, float scale, bool accumulate, T *to) {
  comba_each_row(g.batch * g.tokens, [=] __device__(int64_t row, int64_t lane) {
    const T *in[COMBA_GRID_DIRECTIONS];
    for (int direction = 0; direction < g.directions; direction++) {
      const int64_t place = comba_grid_place(&g, g.order[direction], row % g.tokens);
      in[direction] = from + ((direction * g.batch + row / g.tokens) * g.tokens + place) * g.channels;
    }
    for (int64_t j = lane; j < g.channels; j += 32) {
      float sum = load(in[0] + j);
      for (int direction = 1; direction < g.directions; direction++) sum += load(in[direction] + j);
      put(to + row * g.channels + j, scale * sum, accumulate);
    }
  });
}

#endif
