/* The two ways of moving tokens between the orders of a grid: scan_order spreads them over directions and scan_merge gathers
 * them, and each is the other's backward pass. */
#ifndef COMBA_OPS_GRID_MOVE_H
#define COMBA_OPS_GRID_MOVE_H

#include "ops/grid_order.h"

/* to (directions B, N, d), direction-major, = or += scale * from (B,N,d) in each order */
static inline void comba_grid_spread(const comba_grid_scan *g, const real *from, real scale, bool accumulate,
                                     real *to) {
#pragma omp parallel for collapse(3)
  for (int direction = 0; direction < g->directions; direction++)
    for (int64_t b = 0; b < g->batch; b++)
      for (int64_t place = 0; place < g->tokens; place++) {
        const int64_t token = comba_grid_token(g, g->order[direction], place);
        const real *in = from + (b * g->tokens + token) * g->channels;
        real *out = to + ((direction * g->batch + b) * g->tokens + place) * g->channels;
        for (int64_t j = 0; j < g->channels; j++) out[j] = scale * in[j] + (accumulate ? out[j] : 0);
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
      for (int64_t j = 0; j < g->channels; j++) {
        real sum = in[0][j];
        for (int direction = 1; direction < g->directions; direction++) sum += in[direction][j];
        out[j] = scale * sum + (accumulate ? out[j] : 0);
      }
    }
}

#endif
