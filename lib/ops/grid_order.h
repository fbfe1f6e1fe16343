/* The orders in which scans visit a height x width grid, and the two ways of moving tokens between them: scan_order
 * spreads tokens over directions and scan_merge gathers them, and each is the other's backward pass. */
#ifndef COMBA_OPS_GRID_ORDER_H
#define COMBA_OPS_GRID_ORDER_H

#include "core/op.h"

typedef enum comba_grid_order {
  COMBA_GRID_ROWS,
  COMBA_GRID_COLUMNS,
  COMBA_GRID_ROWS_REVERSED,
  COMBA_GRID_COLUMNS_REVERSED
} comba_grid_order;

enum { COMBA_GRID_DIRECTIONS = 4 };

typedef struct comba_grid_scan {
  int64_t batch, tokens, channels; /* of the side without directions, (B,N,d) */
  int64_t height, width;           /* read by COMBA_GRID_COLUMNS and COMBA_GRID_COLUMNS_REVERSED */
  int directions;
  comba_grid_order order[COMBA_GRID_DIRECTIONS];
} comba_grid_scan;

/* Whether height x width is a grid of that many tokens. */
static inline bool comba_grid_holds(int64_t height, int64_t width, int64_t tokens) {
  int64_t product;
  return height > 0 && width > 0 && !__builtin_mul_overflow(height, width, &product) && product == tokens;
}

/* Token, counted row by row, that comes at `place` of an order. */
static inline int64_t comba_grid_token(const comba_grid_scan *g, comba_grid_order order, int64_t place) {
  if (order == COMBA_GRID_ROWS_REVERSED || order == COMBA_GRID_COLUMNS_REVERSED) place = g->tokens - 1 - place;
  return order == COMBA_GRID_ROWS || order == COMBA_GRID_ROWS_REVERSED
             ? place
             : place % g->height * g->width + place / g->height;
}

/* Where an order has that token. */
static inline int64_t comba_grid_place(const comba_grid_scan *g, comba_grid_order order, int64_t token) {
  const int64_t place = order == COMBA_GRID_ROWS || order == COMBA_GRID_ROWS_REVERSED
                            ? token
                            : token % g->width * g->height + token / g->width;
  return order == COMBA_GRID_ROWS_REVERSED || order == COMBA_GRID_COLUMNS_REVERSED ? g->tokens - 1 - place : place;
}

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
