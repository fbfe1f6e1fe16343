/* What image.c and the two decoders share. */
#ifndef COMBA_DATA_IMAGE_CODEC_H
#define COMBA_DATA_IMAGE_CODEC_H

#include "data/image.h"

typedef struct comba_image_source {
  const uint8_t *data;
  size_t size;
  const char *name;
  int channels;
  int64_t least_side;
} comba_image_source;

/* Both fill in `image` (to be freed) and `orientation`, EXIF's 1 to 8; 1 where the file names none. */
comba_status comba_png_decode(comba_image *image, int *orientation, const comba_image_source *source);
comba_status comba_jpeg_decode(comba_image *image, int *orientation, const comba_image_source *source);

/* An error unless both sides are at least 1 and the product is at most COMBA_IMAGE_MAX_PIXELS. */
comba_status comba_image_check_size(const char *name, int64_t width, int64_t height);

/* Orientation from a TIFF block (what follows "Exif\0\0"); 1 where it is absent or makes no sense. */
int comba_exif_orientation(const uint8_t *data, size_t size);

/* Luma in 16 fractional bits; the weights sum to 65536. */
static inline uint8_t comba_image_grey(unsigned red, unsigned green, unsigned blue) {
  return (uint8_t)((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16);
}

/* value over white with coverage alpha, rounded. */
static inline uint8_t comba_image_over_white(unsigned value, unsigned alpha) {
  return (uint8_t)(255 - ((255 - value) * alpha + 127) / 255);
}

/* a * b / 255, rounded. */
static inline uint8_t comba_image_multiply(unsigned a, unsigned b) {
  return (uint8_t)((a * b + 127) / 255);
}

#endif
