/* The orders in which scans visit a height x width grid. */
#ifndef COMBA_OPS_GRID_ORDER_H
#define COMBA_OPS_GRID_ORDER_H

#include "core/host_device.h"
#include "ops/ops.h"

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

/* The orders that scan_order spreads x (B,N,d) over; no directions where `scan` is none of its own, or random. */
static inline comba_grid_scan comba_scan_order_grid(const comba_scan_attributes *a, const comba_shape *x) {
  comba_grid_scan g = {x->size[0], x->size[1], x->size[2], a->height, a->width, 0, {COMBA_GRID_ROWS}};
  switch (a->scan) {
  case COMBA_SCAN_FLIP: g.order[g.directions++] = COMBA_GRID_ROWS_REVERSED; break;
  case COMBA_SCAN_TRANSPOSE: g.order[g.directions++] = COMBA_GRID_COLUMNS; break;
  case COMBA_SCAN_BI:
    g.order[g.directions++] = COMBA_GRID_ROWS;
    g.order[g.directions++] = COMBA_GRID_ROWS_REVERSED;
    break;
  case COMBA_SCAN_CROSS:
    g.order[g.directions++] = COMBA_GRID_ROWS;
    g.order[g.directions++] = COMBA_GRID_COLUMNS;
    g.order[g.directions++] = COMBA_GRID_ROWS_REVERSED;
    g.order[g.directions++] = COMBA_GRID_COLUMNS_REVERSED;
    break;
  default: break;
  }
  return g;
}

/* The orders in which scan_merge finds the directions of x (directions B, N, d). */
static inline comba_grid_scan comba_scan_merge_grid(const comba_scan_attributes *a, const comba_shape *x) {
  comba_grid_scan g = {0, x->size[1], x->size[2], a->height, a->width, 0, {COMBA_GRID_ROWS}};
  switch (a->scan) {
  case COMBA_SCAN_BI:
    g.order[g.directions++] = COMBA_GRID_ROWS;
    g.order[g.directions++] = COMBA_GRID_ROWS;
    break;
  case COMBA_SCAN_BI_ALIGNED:
    g.order[g.directions++] = COMBA_GRID_ROWS;
    g.order[g.directions++] = COMBA_GRID_ROWS_REVERSED;
    break;
  case COMBA_SCAN_CROSS:
    g.order[g.directions++] = COMBA_GRID_ROWS;
    g.order[g.directions++] = COMBA_GRID_COLUMNS;
    g.order[g.directions++] = COMBA_GRID_ROWS_REVERSED;
    g.order[g.directions++] = COMBA_GRID_COLUMNS_REVERSED;
    break;
  default: return g;
  }
  g.batch = x->size[0] / g.directions;
  return g;
}

/* Token, counted row by row, that comes at `place` of an order. */
static inline COMBA_HOST_DEVICE int64_t comba_grid_token(const comba_grid_scan *g, comba_grid_order order,
                                                         int64_t place) {
  if (order == COMBA_GRID_ROWS_REVERSED || order == COMBA_GRID_COLUMNS_REVERSED) place = g->tokens - 1 - place;
  return order == COMBA_GRID_ROWS || order == COMBA_GRID_ROWS_REVERSED
             ? place
             : place % g->height * g->width + place / g->height;
}

/* Where an order has that token. */
static inline COMBA_HOST_DEVICE int64_t comba_grid_place(const comba_grid_scan *g, comba_grid_order order,
                                                         int64_t token) {
  const int64_t place = order == COMBA_GRID_ROWS || order == COMBA_GRID_ROWS_REVERSED
                            ? token
                            : token % g->width * g->height + token / g->width;
  return order == COMBA_GRID_ROWS_REVERSED || order == COMBA_GRID_COLUMNS_REVERSED ? g->tokens - 1 - place : place;
}

#endif
