#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "data/image_codec.h"

/* On the heap, so that nothing that changes after setjmp is a local variable. */
typedef struct reader {
  const comba_image_source *source;
  size_t position;
  comba_image decoded; /* (height, width, grey or RGB, and alpha) */
  png_bytep *rows;
  char message[128];
} reader;

static void on_error(png_structp png, png_const_charp message) {
  reader *r = png_get_error_ptr(png);
  strncpy(r->message, message, sizeof r->message - 1);
  png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message) {
  (void)png;
  (void)message;
}

static void on_read(png_structp png, png_bytep data, size_t length) {
  reader *r = png_get_io_ptr(png);
  if (length > r->source->size - r->position) png_error(png, "the file ends before the picture does");
  memcpy(data, r->source->data + r->position, length);
  r->position += length;
}

static uint32_t read32(const uint8_t *bytes) {
  return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* Header and chunk lengths, before libpng sees them: it takes memory for a chunk before it knows whether the file has so many
 * bytes, and its message for a size of zero does not say so. */
static comba_status check_chunks(const comba_image_source *source) {
  const uint8_t *data = source->data;
  if (source->size < 24 || memcmp(data + 12, "IHDR", 4) != 0)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: PNG signature without a header, expected IHDR", source->name);
  for (size_t at = 8; source->size - at >= 12;) { /* length, name, data, checksum */
    const uint32_t length = read32(data + at);
    if (length > source->size - at - 12) break;
    if (memcmp(data + at + 4, "IEND", 4) == 0)
      return comba_image_check_size(source->name, read32(data + 16), read32(data + 20));
    at += 12 + (size_t)length;
  }
  return comba_fail(COMBA_ERROR_FORMAT,
                    "%s: this PNG file of %zu bytes is cut or damaged: its chunks do not end in IEND", source->name,
                    source->size);
}

/* Deflate gains at most a factor of 1032, so a small file that declares a large picture is refused before memory is
 * taken for it. */
static comba_status check_plausible(const comba_image_source *source, int64_t height, uint64_t row_bytes) {
  if ((uint64_t)height * row_bytes / 1100 > source->size)
    return comba_fail(COMBA_ERROR_FORMAT,
                      "%s: %zu bytes cannot hold the %lld rows of %llu bytes that the file declares", source->name,
                      source->size, (long long)height, (unsigned long long)row_bytes);
  return COMBA_OK;
}

/* (count, found) with alpha to (count, wanted) over white, in the same buffer from the front: no pixel grows. */
static void convert(uint8_t *pixels, int64_t count, int found, int wanted) {
  for (int64_t i = 0; i < count; i++) {
    const uint8_t *from = pixels + i * found;
    uint8_t *to = pixels + i * wanted;
    const unsigned alpha = from[found - 1];
    if (found == 2) {
      to[0] = comba_image_over_white(from[0], alpha);
      continue;
    }
    const uint8_t red = comba_image_over_white(from[0], alpha), green = comba_image_over_white(from[1], alpha),
                  blue = comba_image_over_white(from[2], alpha);
    if (wanted == 1) {
      to[0] = comba_image_grey(red, green, blue);
    } else {
      to[0] = red;
      to[1] = green;
      to[2] = blue;
    }
  }
}

comba_status comba_png_decode(comba_image *image, int *orientation, const comba_image_source *source) {
  comba_status status = check_chunks(source);
  if (status != COMBA_OK) return status;
  png_structp png = NULL;
  png_infop info = NULL;
  reader *const r = calloc(1, sizeof *r);

  if (r) png = png_create_read_struct(PNG_LIBPNG_VER_STRING, r, on_error, on_warning);
  if (png) info = png_create_info_struct(png);
  if (!info) {
    status = comba_fail_memory(sizeof *r, "the PNG decoder");
    goto cleanup;
  }
  r->source = source;
  if (setjmp(png_jmpbuf(png))) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: cannot decode this PNG file: %s", source->name, r->message);
    goto cleanup;
  }
  png_set_read_fn(png, r, on_read);
  png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
  png_set_chunk_malloc_max(png, 8 << 20);
  png_set_chunk_cache_max(png, 128);
  png_read_info(png, info);

  const int64_t width = png_get_image_width(png, info), height = png_get_image_height(png, info);
  COMBA_TRY(check_plausible(source, height, png_get_rowbytes(png, info)));

  png_set_scale_16(png);
  png_set_expand(png); /* palette and fewer than 8 bits to 8 bits; tRNS to alpha */
  if (source->channels == 3 && !(png_get_color_type(png, info) & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(png);
  png_set_add_alpha(png, 0xff, PNG_FILLER_AFTER); /* no effect where there is alpha */
  png_set_interlace_handling(png);
  png_read_update_info(png, info);

  const int found = png_get_channels(png, info);
  const size_t row_bytes = png_get_rowbytes(png, info);
  if ((found != 2 && found != 4) || row_bytes != (size_t)width * (size_t)found) png_error(png, "unexpected row layout");
  COMBA_TRY(comba_image_create(&r->decoded, width, height, found));
  r->rows = malloc((size_t)height * sizeof *r->rows);
  if (!r->rows) {
    status = comba_fail_memory((size_t)height * sizeof *r->rows, "a picture's rows");
    goto cleanup;
  }
  for (int64_t y = 0; y < height; y++) r->rows[y] = r->decoded.pixels + (size_t)y * row_bytes;
  png_read_image(png, r->rows);
  png_read_end(png, info); /* checks the last data's sum; EXIF may follow the pixels */

  png_bytep exif = NULL;
  png_uint_32 exif_size = 0;
  if (png_get_eXIf_1(png, info, &exif_size, &exif)) *orientation = comba_exif_orientation(exif, exif_size);
  convert(r->decoded.pixels, width * height, found, source->channels);
  *image = r->decoded;
  image->channels = source->channels;
  r->decoded.pixels = NULL;
cleanup:
  png_destroy_read_struct(&png, &info, NULL);
  if (r) {
    free(r->rows);
    free(r->decoded.pixels);
  }
  free(r);
  return status;
}
