/* A PNG or JPEG file, decoded in colour and in grey, at its size and reduced, and fitted to a square. */
#include "data/resize.h"
#include "fuzz.h"

static void decode(const uint8_t *data, size_t size, int channels, int64_t least_side) {
  enum { SIDE = 16 };
  uint8_t pixels[SIDE * SIDE * 3];
  comba_image image = {0};
  if (comba_image_decode(&image, data, size, "input", channels, least_side) != COMBA_OK) return;
  if (image.channels != channels) abort();
  for (int fit = COMBA_FIT_CROP; fit <= COMBA_FIT_STRETCH; fit++)
    if (image.width * image.height < 1 << 20) comba_image_fit(pixels, &image, SIDE, (comba_fit)fit);
  comba_image_free(&image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  decode(data, size, 3, 0);
  decode(data, size, 1, 16);
  return 0;
}
