/* The two ways of moving tokens between the orders of a grid: scan_order spreads them over directions and scan_merge gathers
 * them, and each is the other's backward pass. */
#ifndef COMBA_OPS_GRID_MOVE_H
#define COMBA_OPS_GRID_MOVE_H

#include "ops/grid_order.h"

/* to (directions B, N, d), direction-major, = or += scale * from (B,N,d) in each order. A token goes to all its places while the
 * cache has it. */
static inline void comba_grid_spread(const comba_grid_scan *g, const real *from, real scale, bool accumulate,
                                     real *to) {
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < g->batch; b++)
    for (int64_t token = 0; token < g->tokens; token++)
      for (int direction = 0; direction < g->directions; direction++) {
        const int64_t place = comba_grid_place(g, g->order[direction], token);
        const real *in = from + (b * g->tokens + token) * g->channels;
        real *out = to + ((direction * g->batch + b) * g->tokens + place) * g->channels;
        for (int64_t j = 0; j < g->channels; j++) out[j] = scale * in[j] + (accumulate ? out[j] : 0);
      }
}

/* out (count) = or += scale * the sum of `directions` rows; their number is a constant where this is called */
static inline __attribute__((always_inline)) void comba_grid_sum(int directions, const real *const *in, int64_t count,
                                                                 real scale, bool accumulate, real *out) {
  for (int64_t j = 0; j < count; j++) {
    real sum = in[0][j];
    for (int direction = 1; direction < directions; direction++) sum += in[direction][j];
    out[j] = scale * sum + (accumulate ? out[j] : 0);
  }
}

/* to (B,N,d) = or += scale * sum over directions of from (directions B, N, d), each token back in its place */
static inline void comba_grid_gather(const comba_grid_scan *g, const real *from, real scale, bool accumulate,
                                     real *to) {
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < g->batch; b++)
    for (int64_t token = 0; token < g->tokens; token++) {
      const real *in[COMBA_GRID_DIRECTIONS];
      for (int direction = 0; direction < g->directions; direction++) {
        const int64_t place = comba_grid_place(g, g->order[direction], token);
        in[direction] = from + ((direction * g->batch + b) * g->tokens + place) * g->channels;
      }
      real *out = to + (b * g->tokens + token) * g->channels;
      switch (g->directions) {
      case 1: comba_grid_sum(1, in, g->channels, scale, accumulate, out); break;
      case 2: comba_grid_sum(2, in, g->channels, scale, accumulate, out); break;
      default: comba_grid_sum(COMBA_GRID_DIRECTIONS, in, g->channels, scale, accumulate, out); break;
      }
    }
}

#endif
