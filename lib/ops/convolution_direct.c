/* Two kernels that differ in what a vector holds: neighbouring positions of one filter, or the filters at one position. Either
 * way a tile of TILE_ROWS times two vectors of sums stays in registers over the whole depth. */
#include "ops/convolution_direct.h"

void COMBA_VARIANT(comba_convolution_offsets)(const padded_image *p) {
  int32_t *offset = p->offset;
  for (int64_t c = 0; c < p->channels; c++)
    for (int64_t ky = 0; ky < p->window_height; ky++)
      for (int64_t kx = 0; kx < p->window_width; kx++)
        *offset++ = (int32_t)((c * padded_height(p) + ky) * padded_width(p) + kx);
  while (offset < p->offset + whole_tiles(padded_taps(p))) *offset++ = 0;
}

void COMBA_VARIANT(comba_convolution_pad)(const real *image, const padded_image *p) {
  const int64_t width = padded_width(p);
  memset(p->pixels, 0, (size_t)padded_size(p) * sizeof(real));
  for (int64_t c = 0; c < p->channels; c++)
    for (int64_t y = 0; y < p->height; y++, image += p->width) {
      real *row = p->pixels + (c * padded_height(p) + p->top + y) * width + p->left;
      int64_t x = 0;
      for (; x + LANES <= p->width; x += LANES) *(vector *)(row + x) = *(const vector *)(image + x);
      if (x < p->width) vector_store_first(row + x, p->width - x, vector_load_first(image + x, p->width - x));
    }
}

/* ---- Neighbouring positions of a filter --------------------------------------------------------------------------- */

/* `lanes` positions of one output row: the first tap of their windows, and where in y they go */
typedef struct position {
  const real *from;
  int64_t to, lanes;
} position;

/* rows and vectors are constants where this is inlined; y and weight start at the tile's first filter, `plane` apart */
static inline __attribute__((always_inline)) void windows_tile(int rows, int vectors, int64_t taps,
                                                               const int32_t *offset, const position at[2],
                                                               const real *weight, const real *bias, bool accumulate,
                                                               int64_t plane, real *y) {
  vector sum[TILE_ROWS][2] = {0};
  for (int64_t tap = 0; tap < taps; tap++) {
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; v++)
        sum[i][v] += weight[i * taps + tap] * *(const vector *)(at[v].from + offset[tap]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
      real *const to = y + i * plane + at[v].to;
      vector value = sum[i][v];
      if (bias) value += bias[i];
      if (accumulate) value += vector_load_first(to, at[v].lanes);
      vector_store_first(to, at[v].lanes, value);
    }
}

/* All positions for `rows` filters. */
static inline __attribute__((always_inline)) void windows_of(int rows, const padded_image *p, const real *weight,
                                                             const real *bias, bool accumulate, real *y) {
  const int64_t height = padded_height(p) - p->window_height + 1, width = padded_width(p) - p->window_width + 1;
  const int64_t parts = (width + LANES - 1) / LANES, count = height * parts, taps = padded_taps(p);
  position at[2] = {0};
  for (int64_t i = 0; i < count; i++) {
    const int64_t row = i / parts, first = i % parts * LANES;
    at[i % 2] = (position){p->pixels + row * padded_width(p) + first, row * width + first,
                           width - first < LANES ? width - first : LANES};
    if (i % 2)
      windows_tile(rows, 2, taps, p->offset, at, weight, bias, accumulate, height * width, y);
    else if (i + 1 == count)
      windows_tile(rows, 1, taps, p->offset, at, weight, bias, accumulate, height * width, y);
  }
}

void COMBA_VARIANT(comba_convolution_windows)(const padded_image *p, int64_t filters, const real *weight,
                                              const real *bias, bool accumulate, real *y) {
  const int64_t taps = padded_taps(p);
  const int64_t plane = (padded_height(p) - p->window_height + 1) * (padded_width(p) - p->window_width + 1);
  int64_t i = 0;
  for (; i + TILE_ROWS <= filters; i += TILE_ROWS)
    windows_of(TILE_ROWS, p, weight + i * taps, bias ? bias + i : NULL, accumulate, y + i * plane);
  for (; i < filters; i++) windows_of(1, p, weight + i * taps, bias ? bias + i : NULL, accumulate, y + i * plane);
}

/* ---- The filters at a position ------------------------------------------------------------------------------------ */

/* A tile of taps from `tap` on, `vectors` vectors of filters: sums over all positions */
static inline __attribute__((always_inline)) void correlate_tile(int vectors, const padded_image *p, int64_t tap,
                                                                 const real *dy, int64_t stride, bool accumulate,
                                                                 real *sums) {
  const int64_t height = padded_height(p) - p->window_height + 1, width = padded_width(p) - p->window_width + 1;
  const real *from[TILE_ROWS];
  vector sum[TILE_ROWS][2] = {0};
#pragma GCC unroll 8
  for (int i = 0; i < TILE_ROWS; i++) from[i] = p->pixels + p->offset[tap + i];
  for (int64_t y = 0; y < height; y++)
    for (int64_t x = 0; x < width; x++, dy += stride)
#pragma GCC unroll 8
      for (int i = 0; i < TILE_ROWS; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
          sum[i][v] += from[i][y * padded_width(p) + x] * *(const vector *)(dy + v * LANES);
#pragma GCC unroll 8
  for (int i = 0; i < TILE_ROWS; i++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
      vector *const to = (vector *)(sums + (tap + i) * stride + v * LANES);
      if (accumulate) sum[i][v] += *to;
      *to = sum[i][v];
    }
}

static inline __attribute__((always_inline)) void correlate_filters(int vectors, const padded_image *p, const real *dy,
                                                                    int64_t stride, bool accumulate, real *sums) {
  for (int64_t tap = 0; tap < padded_taps(p); tap += TILE_ROWS)
    correlate_tile(vectors, p, tap, dy, stride, accumulate, sums);
}

void COMBA_VARIANT(comba_convolution_correlate)(const padded_image *p, const real *dy, int64_t stride, bool accumulate,
                                                real *sums) {
  int64_t j = 0;
  for (; j + 2 * LANES <= stride; j += 2 * LANES) correlate_filters(2, p, dy + j, stride, accumulate, sums + j);
  for (; j < stride; j += LANES) correlate_filters(1, p, dy + j, stride, accumulate, sums + j);
}
