#include "data/augment.h"

#include <string.h>

#include "core/random.h"

comba_normalization comba_normalization_create(const double mean[3], const double deviation[3]) {
  comba_normalization normalization;
  for (int c = 0; c < 3; c++) {
    const double divisor = deviation[c] > 1.0 / 255 ? deviation[c] : 1.0 / 255;
    normalization.scale[c] = (float)(1 / (255 * divisor));
    normalization.shift[c] = (float)(-mean[c] / divisor);
  }
  return normalization;
}

/* A whole number in [0, count) from 32 random bits. */
static int64_t below(uint32_t bits, int64_t count) {
  return (int64_t)((uint64_t)bits * (uint64_t)count >> 32);
}

void comba_augment_apply(float *out, const uint8_t *pixels, int64_t side, int channels,
                         const comba_normalization *normalization, const comba_augment *augment, int64_t epoch,
                         int64_t picture) {
  int64_t shift_x = 0, shift_y = 0; /* out(x, y) is the picture's (x + shift_x, y + shift_y) */
  bool flip = false;
  if (augment) {
    const uint64_t stream = comba_random_stream("augment") + (uint64_t)epoch;
    const comba_random4 random = comba_random_bits(augment->seed, stream, (uint64_t)picture);
    shift_x = below(random.value[0], 2 * augment->padding + 1) - augment->padding;
    shift_y = below(random.value[1], 2 * augment->padding + 1) - augment->padding;
    flip = augment->flip && random.value[2] >> 31;
  }
  /* the columns of the crop that lie on the picture; the others are border */
  const int64_t first = shift_x < 0 ? (-shift_x < side ? -shift_x : side) : 0;
  const int64_t last = shift_x > 0 ? (shift_x < side ? side - shift_x : 0) : side;
  for (int c = 0; c < channels; c++) {
    const float scale = normalization->scale[c], shift = normalization->shift[c];
    for (int64_t y = 0; y < side; y++) {
      float *to = out + (c * side + y) * side;
      memset(to, 0, (size_t)side * sizeof *to);
      if (y + shift_y < 0 || y + shift_y >= side) continue;
      const uint8_t *from = pixels + (y + shift_y) * side * channels + c;
      for (int64_t x = first; x < last; x++)
        to[flip ? side - 1 - x : x] = (float)from[(x + shift_x) * channels] * scale + shift;
    }
  }
}
