#include "data/resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const fit_names[] = {"crop", "pad", "stretch"};

const char *comba_fit_name(comba_fit fit) {
  return fit_names[fit];
}

comba_status comba_fit_parse(comba_fit *fit, const char *name) {
  for (int i = 0; i < 3; i++)
    if (strcmp(name, fit_names[i]) == 0) {
      *fit = (comba_fit)i;
      return COMBA_OK;
    }
  return comba_fail(COMBA_ERROR_ARGUMENT, "fit '%s', expected crop, pad or stretch", name);
}

/* Weights for one axis: target pixel i is the sum over j < taps of weight[i * taps + j] * source[first[i] + j]. */
typedef struct axis {
  int64_t taps;
  int64_t *first; /* (target) */
  float *weight;  /* (target, taps); zero where the filter is cut off */
} axis;

static void axis_free(axis *a) {
  free(a->first);
  free(a->weight);
}

/* The source interval [start, start + length) goes to `target` pixels; `limit` source pixels exist. */
static comba_status axis_create(axis *a, double start, double length, int64_t target, int64_t limit) {
  const double scale = length / (double)target, support = scale > 1 ? scale : 1;
  a->taps = 2 * (int64_t)ceil(support) + 1;
  if (a->taps > limit) a->taps = limit;
  a->first = calloc((size_t)target, sizeof *a->first);
  a->weight = calloc((size_t)(target * a->taps), sizeof *a->weight);
  if (!a->first || !a->weight) return comba_fail_memory((size_t)(target * a->taps) * sizeof(float), "resize weights");
  for (int64_t i = 0; i < target; i++) {
    const double centre = start + ((double)i + 0.5) * scale;
    int64_t first = (int64_t)floor(centre - support + 0.5),
            last = (int64_t)floor(centre + support + 0.5); /* exclusive */
    if (first < 0) first = 0;
    if (last > limit) last = limit;
    if (first > limit - a->taps) first = limit - a->taps;
    if (last > first + a->taps) last = first + a->taps;
    double sum = 0;
    for (int64_t j = first; j < last; j++) sum += fmax(0, 1 - fabs((double)j + 0.5 - centre) / support);
    for (int64_t j = first; j < last; j++)
      a->weight[i * a->taps + j - first] = (float)(fmax(0, 1 - fabs((double)j + 0.5 - centre) / support) / sum);
    a->first[i] = first;
  }
  return COMBA_OK;
}

/* The part of the picture that the target shows, and where in the target it goes. */
typedef struct placement {
  double left, top, width, height;              /* of the source */
  int64_t to_left, to_top, to_width, to_height; /* of the target */
} placement;

static placement place(const comba_image *image, int64_t size, comba_fit fit) {
  const double width = (double)image->width, height = (double)image->height;
  placement p = {0, 0, width, height, 0, 0, size, size};
  if (fit == COMBA_FIT_CROP) {
    p.width = p.height = fmin(width, height);
    p.left = (width - p.width) / 2;
    p.top = (height - p.height) / 2;
  } else if (fit == COMBA_FIT_PAD) {
    const double scale = (double)size / fmax(width, height);
    p.to_width = (int64_t)fmax(1, round(width * scale));
    p.to_height = (int64_t)fmax(1, round(height * scale));
    p.to_left = (size - p.to_width) / 2;
    p.to_top = (size - p.to_height) / 2;
  }
  return p;
}

/* Rows first: (height, width) to `middle` (height, to_width) for the rows that the target shows. `channels` is a constant where this
 * is inlined. */
static inline void filter_across(float *middle, const comba_image *image, const axis *across, int64_t to_width,
                                 int64_t first_row, int64_t last_row, const int channels) {
  for (int64_t y = first_row; y < last_row; y++)
    for (int64_t x = 0; x < to_width; x++) {
      const uint8_t *from = image->pixels + (y * image->width + across->first[x]) * channels;
      const float *weight = across->weight + x * across->taps;
      float sum[3] = {0};
      for (int64_t tap = 0; tap < across->taps; tap++)
        for (int c = 0; c < channels; c++) sum[c] += weight[tap] * from[tap * channels + c];
      for (int c = 0; c < channels; c++) middle[(y * to_width + x) * channels + c] = sum[c];
    }
}

/* Then columns, a whole row of `row` floats at a time. */
static void filter_down(uint8_t *to, float *sum, const float *middle, const axis *down, int64_t y, int64_t row) {
  for (int64_t x = 0; x < row; x++) sum[x] = 0.5f;
  for (int64_t tap = 0; tap < down->taps; tap++) {
    const float weight = down->weight[y * down->taps + tap], *from = middle + (down->first[y] + tap) * row;
    for (int64_t x = 0; x < row; x++) sum[x] += weight * from[x];
  }
  for (int64_t x = 0; x < row; x++) to[x] = (uint8_t)(sum[x] > 255 ? 255 : sum[x]); /* weights and pixels are >= 0 */
}

comba_status comba_image_fit(uint8_t *pixels, const comba_image *image, int64_t size, comba_fit fit) {
  comba_status status = COMBA_OK;
  axis across = {0}, down = {0};
  float *middle = NULL; /* (image->height, to_width, channels), and one row more for sums */
  const size_t bytes = (size_t)(size * size * image->channels);
  if (image->width == size && image->height == size) {
    memcpy(pixels, image->pixels, bytes);
    return COMBA_OK;
  }
  const placement p = place(image, size, fit);
  COMBA_TRY(axis_create(&across, p.left, p.width, p.to_width, image->width));
  COMBA_TRY(axis_create(&down, p.top, p.height, p.to_height, image->height));
  const int64_t row = p.to_width * image->channels;
  const int64_t first_row = down.first[0], last_row = down.first[p.to_height - 1] + down.taps;
  const size_t middle_size = (size_t)((image->height + 1) * row) * sizeof *middle;
  middle = malloc(middle_size);
  if (!middle) {
    status = comba_fail_memory(middle_size, "resizing a picture");
    goto cleanup;
  }
  if (fit == COMBA_FIT_PAD) memset(pixels, 255, bytes);
  if (image->channels == 1)
    filter_across(middle, image, &across, p.to_width, first_row, last_row, 1);
  else
    filter_across(middle, image, &across, p.to_width, first_row, last_row, 3);
  for (int64_t y = 0; y < p.to_height; y++)
    filter_down(pixels + ((p.to_top + y) * size + p.to_left) * image->channels, middle + image->height * row, middle,
                &down, y, row);
cleanup:
  free(middle);
  axis_free(&down);
  axis_free(&across);
  return status;
}
