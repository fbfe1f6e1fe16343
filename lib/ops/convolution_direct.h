/* Convolution of one image with stride 1 without columns: each tap reads the padded image a little further on, so that the window
 * of a vector of neighbouring positions is a vector itself. */
#ifndef COMBA_OPS_CONVOLUTION_DIRECT_H
#define COMBA_OPS_CONVOLUTION_DIRECT_H

#include <stdbool.h>

#include "core/vector.h"

enum { DIRECT_UNIT = 16 }; /* sizes that are read in vectors are multiples of it */

/* Taps are correlated a tile at a time: `offset` and sums over taps are whole tiles long, and what is too many is read nowhere. */
static inline int64_t whole_tiles(int64_t taps) {
  return (taps + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
}

/* An image (channels, height, width) inside borders of zeros: (channels, height + 2 top, width + 2 left), DIRECT_UNIT zeros more
 * at the end; and the windows that slide over it, whose taps (channels, window_height, window_width) are `offset` away. */
typedef struct padded_image {
  int64_t channels, height, width, top, left, window_height, window_width;
  real *pixels;
  int32_t *offset;
} padded_image;

static inline int64_t padded_width(const padded_image *p) {
  return p->width + 2 * p->left;
}
static inline int64_t padded_height(const padded_image *p) {
  return p->height + 2 * p->top;
}
static inline int64_t padded_size(const padded_image *p) {
  return p->channels * padded_height(p) * padded_width(p) + DIRECT_UNIT;
}
static inline int64_t padded_taps(const padded_image *p) {
  return p->channels * p->window_height * p->window_width;
}

/* Fills in offset, with 0 beyond the taps. */
void COMBA_VARIANT(comba_convolution_offsets)(const padded_image *p);
/* Fills in pixels. */
void COMBA_VARIANT(comba_convolution_pad)(const real *image, const padded_image *p);
/* y (filters, H', W') = or += weight (filters, taps) windows + bias */
void COMBA_VARIANT(comba_convolution_windows)(const padded_image *p, int64_t filters, const real *weight,
                                              const real *bias, bool accumulate, real *y);
/* sums (taps, stride), whole tiles of taps, = or += windows^T dy, dy (H' W', stride) with the filters of a position next to each other */
void COMBA_VARIANT(comba_convolution_correlate)(const padded_image *p, const real *dy, int64_t stride, bool accumulate,
                                                real *sums);

#define convolution_offsets COMBA_VARIANT(comba_convolution_offsets)
#define convolution_pad COMBA_VARIANT(comba_convolution_pad)
#define convolution_windows COMBA_VARIANT(comba_convolution_windows)
#define convolution_correlate COMBA_VARIANT(comba_convolution_correlate)

#endif
