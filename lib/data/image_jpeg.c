#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <jpeglib.h>
#include <jerror.h>
#include <stdlib.h>
#include <string.h>

#include "data/image_codec.h"

/* A progressive file may repeat passes over the whole picture without end; real ones have about ten. */
enum { MAX_SCANS = 200 };

/* On the heap, so that nothing that changes after setjmp is a local variable. */
typedef struct decoder {
  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  comba_image decoded;
  uint8_t *ink; /* one row of CMYK */
  jmp_buf failed;
  char message[JMSG_LENGTH_MAX];
} decoder;

static void on_error(j_common_ptr jpeg) {
  decoder *d = jpeg->client_data;
  jpeg->err->format_message(jpeg, d->message);
  longjmp(d->failed, 1);
}

/* libjpeg warns of a cut or damaged file and goes on with grey; here that is a failure. What concerns only odd markers is
 * let pass. */
static void on_message(j_common_ptr jpeg, int level) {
  if (level >= 0) return;
  const int code = jpeg->err->msg_code;
  if (code == JWRN_EXTRANEOUS_DATA || code == JWRN_JFIF_MAJOR || code == JWRN_ADOBE_XFORM) return;
  on_error(jpeg);
}

static void on_progress(j_common_ptr jpeg) {
  decoder *d = jpeg->client_data;
  if (d->jpeg.input_scan_number <= MAX_SCANS) return;
  snprintf(d->message, sizeof d->message, "more than %d scans", MAX_SCANS);
  longjmp(d->failed, 1);
}

/* Every block takes at least one bit and an MCU of at most 32 x 32 pixels eight blocks or more, so a small file that declares a
 * large picture is refused before memory is taken for it. Arithmetic coding has no such bound. */
static comba_status check_plausible(const comba_image_source *source, const struct jpeg_decompress_struct *jpeg) {
  const int64_t pixels = (int64_t)jpeg->image_width * jpeg->image_height;
  if (!jpeg->arith_code && (uint64_t)pixels / 4096 > source->size)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: %zu bytes cannot hold the %u x %u pixels that the file declares",
                      source->name, source->size, jpeg->image_width, jpeg->image_height);
  return COMBA_OK;
}

/* Eighths of the full size: the least of 1, 2, 4, 8 that leaves both sides `least` pixels. */
static unsigned choose_scale(const struct jpeg_decompress_struct *jpeg, int64_t least) {
  const int64_t side = jpeg->image_width < jpeg->image_height ? jpeg->image_width : jpeg->image_height;
  unsigned scale = 1;
  while (scale < 8 && (least < 1 || side * scale / 8 < least)) scale *= 2;
  return scale;
}

static int find_orientation(const struct jpeg_decompress_struct *jpeg) {
  for (jpeg_saved_marker_ptr marker = jpeg->marker_list; marker; marker = marker->next)
    if (marker->marker == JPEG_APP0 + 1 && marker->data_length > 6 && memcmp(marker->data, "Exif\0\0", 6) == 0)
      return comba_exif_orientation(marker->data + 6, marker->data_length - 6);
  return 1;
}

/* One row of ink to grey or RGB. Adobe's files hold 255 - ink. */
static void convert_cmyk(uint8_t *to, const uint8_t *from, int64_t width, int channels, bool inverted) {
  const uint8_t flip = inverted ? 0 : 255;
  for (int64_t x = 0; x < width; x++, from += 4, to += channels) {
    const unsigned black = from[3] ^ flip;
    const uint8_t red = comba_image_multiply(from[0] ^ flip, black),
                  green = comba_image_multiply(from[1] ^ flip, black),
                  blue = comba_image_multiply(from[2] ^ flip, black);
    if (channels == 1) {
      to[0] = comba_image_grey(red, green, blue);
    } else {
      to[0] = red;
      to[1] = green;
      to[2] = blue;
    }
  }
}

comba_status comba_jpeg_decode(comba_image *image, int *orientation, const comba_image_source *source) {
  comba_status status = COMBA_OK;
  decoder *d = calloc(1, sizeof *d);
  if (!d) return comba_fail_memory(sizeof *d, "the JPEG decoder");
  struct jpeg_decompress_struct *jpeg = &d->jpeg;
  jpeg->err = jpeg_std_error(&d->errors);
  jpeg->client_data = d;
  d->errors.error_exit = on_error;
  d->errors.emit_message = on_message;
  d->progress.progress_monitor = on_progress;

  if (setjmp(d->failed)) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: cannot decode this JPEG file: %s", source->name, d->message);
    goto cleanup;
  }
  jpeg_create_decompress(jpeg); /* clears the struct, but for err and client_data */
  jpeg->progress = &d->progress;
  jpeg_mem_src(jpeg, source->data, source->size);
  jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);
  jpeg_read_header(jpeg, TRUE);
  COMBA_TRY(comba_image_check_size(source->name, jpeg->image_width, jpeg->image_height));
  COMBA_TRY(check_plausible(source, jpeg));

  const bool cmyk = jpeg->jpeg_color_space == JCS_CMYK || jpeg->jpeg_color_space == JCS_YCCK;
  jpeg->out_color_space = cmyk ? JCS_CMYK : (source->channels == 1 ? JCS_GRAYSCALE : JCS_RGB);
  jpeg->scale_num = choose_scale(jpeg, source->least_side);
  jpeg->scale_denom = 8;
  jpeg_start_decompress(jpeg);

  const int64_t width = jpeg->output_width, height = jpeg->output_height;
  const size_t row_bytes = (size_t)(width * source->channels);
  if (jpeg->output_components != (cmyk ? 4 : source->channels)) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: JPEG with %d colour components, expected 1, 3 or 4", source->name,
                        jpeg->num_components);
    goto cleanup;
  }
  COMBA_TRY(comba_image_create(&d->decoded, width, height, source->channels));
  if (cmyk && !(d->ink = malloc((size_t)width * 4))) {
    status = comba_fail_memory((size_t)width * 4, "a row of a picture");
    goto cleanup;
  }
  while (jpeg->output_scanline < jpeg->output_height) {
    uint8_t *to = d->decoded.pixels + jpeg->output_scanline * row_bytes;
    JSAMPROW row = cmyk ? d->ink : to;
    jpeg_read_scanlines(jpeg, &row, 1);
    if (cmyk) convert_cmyk(to, d->ink, width, source->channels, jpeg->saw_Adobe_marker);
  }
  *orientation = find_orientation(jpeg);
  jpeg_finish_decompress(jpeg); /* also drops the markers */
  *image = d->decoded;
  d->decoded.pixels = NULL;
cleanup:
  jpeg_destroy_decompress(jpeg);
  free(d->ink);
  free(d->decoded.pixels);
  free(d);
  return status;
}
