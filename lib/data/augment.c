#include "data/augment.h"

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

void comba_augment_draw(const comba_augment *augment, int64_t epoch, int64_t picture, int32_t crop[3]) {
  const uint64_t stream = comba_random_stream("augment") + (uint64_t)epoch;
  const comba_random4 random = comba_random_bits(augment->seed, stream, (uint64_t)picture);
  for (int i = 0; i < 2; i++)
    crop[i] = (int32_t)below(random.value[i], 2 * (int64_t)augment->padding + 1) - augment->padding;
  crop[2] = augment->flip && random.value[2] >> 31;
}

void comba_normalization_apply(float *out, const uint8_t *pixels, int64_t side, int channels,
                               const comba_normalization *normalization) {
  for (int c = 0; c < channels; c++)
    for (int64_t i = 0; i < side * side; i++)
      out[c * side * side + i] = (float)pixels[i * channels + c] * normalization->scale[c] + normalization->shift[c];
}
