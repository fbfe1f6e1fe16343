#include "data/image_write.h"

#include <png.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <jpeglib.h>
#include <stdlib.h>
#include <string.h>

/* ---- PNG ---- */

typedef struct buffer {
  uint8_t *data;
  size_t size, capacity;
} buffer;

static void on_write(png_structp png, png_bytep data, size_t length) {
  buffer *b = png_get_io_ptr(png);
  if (length > b->capacity - b->size) {
    const size_t capacity = 2 * (b->size + length);
    uint8_t *grown = realloc(b->data, capacity);
    if (!grown) png_error(png, "out of memory");
    b->data = grown;
    b->capacity = capacity;
  }
  memcpy(b->data + b->size, data, length);
  b->size += length;
}

static void on_flush(png_structp png) {
  (void)png;
}

static void on_png_error(png_structp png, png_const_charp message) {
  (void)message;
  png_longjmp(png, 1);
}

static void on_png_warning(png_structp png, png_const_charp message) {
  (void)png;
  (void)message;
}

/* False where libpng gave up. */
static bool write_png(png_structp png, png_infop info, buffer *b, const comba_image *image) {
  if (setjmp(png_jmpbuf(png))) return false;
  png_set_write_fn(png, b, on_write, on_flush);
  png_set_IHDR(png, info, (png_uint_32)image->width, (png_uint_32)image->height, 8,
               image->channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  for (int64_t y = 0; y < image->height; y++) png_write_row(png, image->pixels + y * image->width * image->channels);
  png_write_end(png, info);
  return true;
}

comba_status comba_image_encode_png(const comba_image *image, uint8_t **data, size_t *size) {
  comba_status status = COMBA_OK;
  buffer b = {0};
  png_infop info = NULL;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, on_png_error, on_png_warning);
  if (png) info = png_create_info_struct(png);
  if (info && write_png(png, info, &b, image)) {
    *data = b.data;
    *size = b.size;
  } else {
    status = comba_fail(COMBA_ERROR_MEMORY, "cannot encode a picture of %lld x %lld pixels as PNG",
                        (long long)image->width, (long long)image->height);
    free(b.data);
  }
  png_destroy_write_struct(&png, &info);
  return status;
}

/* ---- JPEG ---- */

typedef struct encoder {
  struct jpeg_compress_struct jpeg;
  struct jpeg_error_mgr errors;
  unsigned char *data;
  unsigned long size;
  jmp_buf failed;
  char message[JMSG_LENGTH_MAX];
} encoder;

static void on_jpeg_error(j_common_ptr jpeg) {
  encoder *e = jpeg->client_data;
  jpeg->err->format_message(jpeg, e->message);
  longjmp(e->failed, 1);
}

static void on_jpeg_message(j_common_ptr jpeg, int level) {
  (void)jpeg;
  (void)level;
}

/* False where libjpeg gave up; the message says why. */
static bool write_jpeg(encoder *e, const comba_image *image, int quality) {
  struct jpeg_compress_struct *jpeg = &e->jpeg;
  if (setjmp(e->failed)) return false;
  jpeg_create_compress(jpeg);
  jpeg_mem_dest(jpeg, &e->data, &e->size);
  jpeg->image_width = (JDIMENSION)image->width;
  jpeg->image_height = (JDIMENSION)image->height;
  jpeg->input_components = image->channels;
  jpeg->in_color_space = image->channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_set_defaults(jpeg);
  jpeg_set_quality(jpeg, quality, TRUE);
  jpeg_start_compress(jpeg, TRUE);
  while (jpeg->next_scanline < jpeg->image_height) {
    JSAMPROW row = image->pixels + jpeg->next_scanline * image->width * image->channels;
    jpeg_write_scanlines(jpeg, &row, 1);
  }
  jpeg_finish_compress(jpeg);
  return true;
}

comba_status comba_image_encode_jpeg(const comba_image *image, int quality, uint8_t **data, size_t *size) {
  comba_status status = COMBA_OK;
  encoder *e = calloc(1, sizeof *e);
  if (!e) return comba_fail_memory(sizeof *e, "the JPEG encoder");
  e->jpeg.err = jpeg_std_error(&e->errors);
  e->jpeg.client_data = e;
  e->errors.error_exit = on_jpeg_error;
  e->errors.emit_message = on_jpeg_message;
  if (write_jpeg(e, image, quality)) {
    *data = e->data;
    *size = e->size;
  } else {
    status = comba_fail(COMBA_ERROR_MEMORY, "cannot encode a picture as JPEG: %s", e->message);
    free(e->data);
  }
  jpeg_destroy_compress(&e->jpeg);
  free(e);
  return status;
}
