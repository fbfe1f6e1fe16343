#include "data/image.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/file.h"
#include "data/image_codec.h"

comba_status comba_image_create(comba_image *image, int64_t width, int64_t height, int channels) {
  const size_t size = (size_t)(width * height * channels);
  uint8_t *pixels = calloc(size ? size : 1, 1); /* calloc: pages that a cut file never reaches cost nothing */
  if (!pixels) return comba_fail_memory(size, "a picture");
  *image = (comba_image){width, height, channels, pixels};
  return COMBA_OK;
}

void comba_image_free(comba_image *image) {
  free(image->pixels);
  *image = (comba_image){0};
}

comba_status comba_image_check_size(const char *name, int64_t width, int64_t height) {
  if (width < 1 || height < 1)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: picture of %lld x %lld pixels, expected at least 1 x 1", name,
                      (long long)width, (long long)height);
  if (width > COMBA_IMAGE_MAX_PIXELS / height)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: picture of %lld x %lld pixels, expected at most %lld pixels", name,
                      (long long)width, (long long)height, (long long)COMBA_IMAGE_MAX_PIXELS);
  return COMBA_OK;
}

/* ---- EXIF ---- */

int comba_exif_orientation(const uint8_t *data, size_t size) {
  enum { ENTRY = 12, TAG_ORIENTATION = 0x0112, TYPE_SHORT = 3 };
  if (size < 8) return 1;
  const bool little = data[0] == 'I';
  if (memcmp(data, little ? "II" : "MM", 2) != 0) return 1;
#define READ16(at) (little ? data[at] | data[(at) + 1] << 8 : data[at] << 8 | data[(at) + 1])
#define READ32(at)                                                                                                     \
  ((uint32_t)(little ? READ16(at) : READ16((at) + 2)) | (uint32_t)(little ? READ16((at) + 2) : READ16(at)) << 16)
  const size_t directory = READ32(4);
  if (READ16(2) != 42 || directory > size - 2) return 1;
  const size_t entries = (size_t)READ16(directory);
  for (size_t entry = 0, at = directory + 2; entry < entries && size - at >= ENTRY; entry++, at += ENTRY) {
    if (READ16(at) != TAG_ORIENTATION || READ16(at + 2) != TYPE_SHORT) continue;
    const int orientation = READ16(at + 8);
    return orientation >= 1 && orientation <= 8 ? orientation : 1;
  }
  return 1;
#undef READ32
#undef READ16
}

/* The upright picture: orientations 2 to 4 mirror and turn, 5 to 8 also exchange rows and columns. */
static comba_status orient(comba_image *image, int orientation) {
  if (orientation == 1) return COMBA_OK;
  const bool transpose = orientation >= 5;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const int64_t width = image->width, height = image->height;
  const int channels = image->channels;
  comba_image upright;
  const comba_status status =
      comba_image_create(&upright, transpose ? height : width, transpose ? width : height, channels);
  if (status != COMBA_OK) return status;
  for (int64_t y = 0; y < upright.height; y++)
    for (int64_t x = 0; x < upright.width; x++) {
      int64_t from_x = transpose ? y : x, from_y = transpose ? x : y;
      if (flip_x) from_x = width - 1 - from_x;
      if (flip_y) from_y = height - 1 - from_y;
      memcpy(upright.pixels + (y * upright.width + x) * channels, image->pixels + (from_y * width + from_x) * channels,
             (size_t)channels);
    }
  comba_image_free(image);
  *image = upright;
  return COMBA_OK;
}

/* ---- Recognition ---- */

static bool starts(const comba_image_source *source, size_t at, const char *magic, size_t length) {
  return source->size >= at + length && memcmp(source->data + at, magic, length) == 0;
}

/* A few words on content that is neither PNG nor JPEG. */
static comba_status fail_unknown(const comba_image_source *source) {
  static const char *const brands[] = {"heic", "heix", "hevc", "heim", "heis", "mif1", "msf1"};
  const char *format = NULL;
  if (starts(source, 4, "ftyp", 4)) {
    format = starts(source, 8, "avif", 4) ? "AVIF" : "an ISO media file";
    for (size_t i = 0; i < sizeof brands / sizeof *brands; i++)
      if (starts(source, 8, brands[i], 4)) format = "HEIC";
  }
  if (starts(source, 0, "RIFF", 4) && starts(source, 8, "WEBP", 4)) format = "WebP";
  if (starts(source, 0, "GIF8", 4)) format = "GIF";
  if (starts(source, 0, "BM", 2)) format = "BMP";
  if (starts(source, 0, "II*\0", 4) || starts(source, 0, "MM\0*", 4)) format = "TIFF";
  if (format)
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: found %s, which is not supported; expected PNG or JPEG",
                      source->name, format);
  if (source->size == 0) return comba_fail(COMBA_ERROR_FORMAT, "%s: empty file, expected PNG or JPEG", source->name);
  char found[64] = "bytes";
  bool text = true;
  for (size_t i = 0; i < source->size && i < 64; i++)
    if (source->data[i] < 0x20 && !isspace(source->data[i])) text = false;
  if (text) snprintf(found, sizeof found, "text");
  for (size_t i = 0; !text && i < 8 && i < source->size; i++)
    snprintf(found + strlen(found), sizeof found - strlen(found), " %02x", source->data[i]);
  return comba_fail(COMBA_ERROR_FORMAT, "%s: found %s at the start, expected PNG or JPEG", source->name, found);
}

comba_status comba_image_decode(comba_image *image, const void *data, size_t size, const char *name, int channels,
                                int64_t least_side) {
  const comba_image_source source = {data, size, name, channels, least_side};
  comba_image decoded = {0};
  int orientation = 1;
  comba_status status;
  if (channels != 1 && channels != 3)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: %d channels asked for, expected 1 or 3", name, channels);
  if (starts(&source, 0, "\x89PNG\r\n\x1a\n", 8))
    status = comba_png_decode(&decoded, &orientation, &source);
  else if (starts(&source, 0, "\xff\xd8\xff", 3))
    status = comba_jpeg_decode(&decoded, &orientation, &source);
  else
    status = fail_unknown(&source);
  if (status == COMBA_OK) status = orient(&decoded, orientation);
  if (status == COMBA_OK)
    *image = decoded;
  else
    comba_image_free(&decoded);
  return status;
}

comba_status comba_image_read(comba_image *image, const char *path, int channels, int64_t least_side) {
  struct stat information;
  char *data = NULL;
  size_t size = 0;
  if (stat(path, &information) == 0 && !S_ISREG(information.st_mode)) /* opening a pipe would wait for its writer */
    return comba_fail(COMBA_ERROR_IO, "%s: not a regular file, expected a PNG or JPEG file", path);
  comba_status status = comba_file_read(path, COMBA_IMAGE_MAX_FILE, &data, &size);
  if (status == COMBA_OK) status = comba_image_decode(image, data, size, path, channels, least_side);
  free(data);
  return status;
}
