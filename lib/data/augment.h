/* From stored pictures to the model's input: normalisation, and for training the crop and the flip.
 *
 * What happens to a picture depends on (seed, epoch, number of the picture) alone, so it does not matter which thread draws it
 * and when. The operator prepare_pictures does it, on the device of the model. */
#ifndef COMBA_DATA_AUGMENT_H
#define COMBA_DATA_AUGMENT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct comba_augment {
  int padding; /* a crop of the picture's size at a random place of the picture with so many pixels around; 0: none. The
                * border is the mean colour (zero after normalisation) */
  bool flip;   /* left and right exchanged in half of the cases */
  uint64_t seed;
} comba_augment;

/* value = (pixel / 255 - mean) / deviation, as value = pixel * scale + shift. */
typedef struct comba_normalization {
  float scale[3], shift[3];
} comba_normalization;

/* A deviation below 1/255 (a channel without contrast) counts as 1/255. */
comba_normalization comba_normalization_create(const double mean[3], const double deviation[3]);

/* out (channels, side, side) from pixels (side, side, channels) */
void comba_normalization_apply(float *out, const uint8_t *pixels, int64_t side, int channels,
                               const comba_normalization *normalization);

/* What becomes of a picture in an epoch, as comba_pictures.crops has it: x, y, mirrored. */
void comba_augment_draw(const comba_augment *augment, int64_t epoch, int64_t picture, int32_t crop[3]);

#endif
