/* Pictures to PNG and JPEG, in memory. */
#ifndef COMBA_DATA_IMAGE_WRITE_H
#define COMBA_DATA_IMAGE_WRITE_H

#include "data/image.h"

/* `data` is to be freed. */
comba_status comba_image_encode_png(const comba_image *image, uint8_t **data, size_t *size);
/* quality 1 to 100. */
comba_status comba_image_encode_jpeg(const comba_image *image, int quality, uint8_t **data, size_t *size);

#endif
