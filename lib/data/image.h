/* Pictures: PNG and JPEG, recognised by their content, to 8-bit grey or RGB.
 *
 * Palettes, 16-bit samples, interlacing, progressive and CMYK files are converted, transparency goes over white, and the
 * orientation that EXIF names is applied. Colour becomes grey as 0.299 R + 0.587 G + 0.114 B. A file that is cut, damaged
 * or larger than the limits is COMBA_ERROR_FORMAT, another picture format COMBA_ERROR_UNSUPPORTED; either message names the
 * file, what was found and what was expected. */
#ifndef COMBA_DATA_IMAGE_H
#define COMBA_DATA_IMAGE_H

#include "core/status.h"

#define COMBA_IMAGE_MAX_PIXELS ((int64_t)1 << 26)
#define COMBA_IMAGE_MAX_FILE ((size_t)1 << 28) /* bytes */

typedef struct comba_image {
  int64_t width, height;
  int channels;    /* 1 grey, 3 RGB */
  uint8_t *pixels; /* (height, width, channels) */
} comba_image;

/* Decodes a file that lies in memory; `name` is for messages. `channels` is 1 or 3. With `least_side` above 0 a JPEG may be
 * decoded at a half, a quarter or an eighth of its size as long as both sides keep at least that many pixels. On success the
 * image is to be freed, on failure it is left as it was. */
comba_status comba_image_decode(comba_image *image, const void *data, size_t size, const char *name, int channels,
                                int64_t least_side);
/* The same for a file on disk. */
comba_status comba_image_read(comba_image *image, const char *path, int channels, int64_t least_side);
/* Allocates the pixels of an image, all zero. */
comba_status comba_image_create(comba_image *image, int64_t width, int64_t height, int channels);
/* Releases the pixels; a zeroed image is fine. */
void comba_image_free(comba_image *image);

#endif
