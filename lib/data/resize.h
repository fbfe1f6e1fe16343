/* Square pictures of one size from pictures of any.
 *
 * The filter is antialiased bilinear: a triangle that is as wide as a source pixel when enlarging and as a target pixel when
 * reducing, cut off and renormalised at the border. Image libraries call the same filter BILINEAR; in
 * preprocessor_config.json it is "resample": 2. */
#ifndef COMBA_DATA_RESIZE_H
#define COMBA_DATA_RESIZE_H

#include "data/image.h"

typedef enum comba_fit {
  COMBA_FIT_CROP = 0, /* the centre square of the short side's length, then scaled */
  COMBA_FIT_PAD,      /* the long side scaled to the size, centred on white */
  COMBA_FIT_STRETCH   /* both sides scaled to the size */
} comba_fit;

/* "crop", "pad", "stretch". */
const char *comba_fit_name(comba_fit fit);
/* Names the value and what is allowed when it is none of these. */
comba_status comba_fit_parse(comba_fit *fit, const char *name);

/* `pixels` receives (size, size, image->channels); size >= 1. */
comba_status comba_image_fit(uint8_t *pixels, const comba_image *image, int64_t size, comba_fit fit);

#endif
