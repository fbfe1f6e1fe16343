/* Pictures: every kind of PNG and JPEG comes out right, a damaged one is an error with a reason, and resizing is what it says. */
#include <png.h>
#include <stdio.h>
#include <jpeglib.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "data/image_write.h"
#include "data/preprocess.h"
#include "testing.h"

enum { WIDTH = 19, HEIGHT = 13 };

static void expect_failure(comba_status status, comba_status expected, const char *part) {
  ck_assert_int_eq(status, expected);
  ck_assert_msg(strstr(comba_last_error(), part) != NULL, "'%s' is not in: %s", part, comba_last_error());
}

/* ---- Files made here ---- */

typedef struct buffer {
  uint8_t data[1 << 16];
  size_t size;
} buffer;

static void put_bytes(png_structp png, png_bytep data, size_t length) {
  buffer *b = png_get_io_ptr(png);
  ck_assert_uint_le(b->size + length, sizeof b->data);
  memcpy(b->data + b->size, data, length);
  b->size += length;
}

static uint8_t sample(int x, int y, int channel) { /* alpha is in channel 3 */
  return (uint8_t)(channel == 3 ? 20 * y : 12 * x + 3 * y + 5 * channel);
}

/* A PNG file of `sample`: 16-bit samples repeat the byte, palettes hold entry i = (i, 2i, 255 - i) and pixels x + y, fewer bits a grey
 * of (x + y) mod 2^bits. */
static void make_png(buffer *b, int colour, int bits, int interlace, int orientation) {
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
  png_infop info = png_create_info_struct(png);
  uint8_t rows[HEIGHT][WIDTH * 8];
  png_bytep pointers[HEIGHT];
  b->size = 0;
  ck_assert(!setjmp(png_jmpbuf(png)));
  png_set_write_fn(png, b, put_bytes, NULL);
  png_set_IHDR(png, info, WIDTH, HEIGHT, bits, colour, interlace, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  if (colour == PNG_COLOR_TYPE_PALETTE) {
    png_color palette[64];
    png_byte alpha[2] = {255, 0}; /* entry 1 is transparent */
    for (int i = 0; i < 64; i++) palette[i] = (png_color){(png_byte)i, (png_byte)(2 * i), (png_byte)(255 - i)};
    png_set_PLTE(png, info, palette, 64);
    png_set_tRNS(png, info, alpha, 2, NULL);
  }
  if (orientation) {
    uint8_t exif[26] = {'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, (uint8_t)orientation};
    png_set_eXIf_1(png, info, sizeof exif, exif);
  }
  png_write_info(png, info);
  png_set_packing(png);
  const int count = colour == PNG_COLOR_TYPE_GRAY || colour == PNG_COLOR_TYPE_PALETTE ? 1
                    : colour == PNG_COLOR_TYPE_GRAY_ALPHA                             ? 2
                    : colour == PNG_COLOR_TYPE_RGB                                    ? 3
                                                                                      : 4;
  for (int y = 0; y < HEIGHT; y++) {
    uint8_t *to = pointers[y] = rows[y];
    for (int x = 0; x < WIDTH; x++)
      for (int c = 0; c < count; c++) {
        const bool alpha = c == count - 1 && (count == 2 || count == 4);
        const uint8_t value = colour == PNG_COLOR_TYPE_PALETTE ? (uint8_t)(x + y)
                              : bits < 8                       ? (uint8_t)((x + y) & ((1 << bits) - 1))
                                                               : sample(x, y, alpha ? 3 : c);
        for (int i = 0; i < (bits == 16 ? 2 : 1); i++) *to++ = value;
      }
  }
  png_write_image(png, pointers);
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
}

/* A JPEG file with one colour all over; `space` is that of `pixel`. */
static void make_jpeg(buffer *b, J_COLOR_SPACE space, int components, const uint8_t *pixel, bool adobe, int orientation,
                      int width, int height) {
  struct jpeg_compress_struct jpeg;
  struct jpeg_error_mgr errors;
  unsigned char *data = NULL;
  unsigned long size = 0;
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  jpeg_mem_dest(&jpeg, &data, &size);
  jpeg.image_width = (JDIMENSION)width;
  jpeg.image_height = (JDIMENSION)height;
  jpeg.input_components = components;
  jpeg.in_color_space = space;
  jpeg_set_defaults(&jpeg);
  jpeg_set_quality(&jpeg, 100, TRUE);
  jpeg.write_Adobe_marker = adobe;
  jpeg_start_compress(&jpeg, TRUE);
  if (orientation) {
    const uint8_t exif[32] = {'E', 'x',  'i',  'f', 0,
                              0,   'I',  'I',  42,  0,
                              8,   0,    0,    0,   1,
                              0,   0x12, 0x01, 3,   0,
                              1,   0,    0,    0,   (uint8_t)orientation};
    jpeg_write_marker(&jpeg, JPEG_APP0 + 1, exif, sizeof exif);
  }
  uint8_t row[256 * 4];
  for (int x = 0; x < width; x++) memcpy(row + x * components, pixel, (size_t)components);
  JSAMPROW rows = row;
  while (jpeg.next_scanline < jpeg.image_height) jpeg_write_scanlines(&jpeg, &rows, 1);
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
  ck_assert_uint_le(size, sizeof b->data);
  memcpy(b->data, data, size);
  b->size = size;
  free(data);
}

static comba_image decode(const buffer *b, int channels) {
  comba_image image = {0};
  ck_assert_msg(comba_image_decode(&image, b->data, b->size, "made here", channels, 0) == COMBA_OK, "%s",
                comba_last_error());
  ck_assert_int_eq(image.channels, channels);
  return image;
}

static void expect_pixel(const comba_image *image, int64_t x, int64_t y, int red, int green, int blue, int tolerance) {
  const uint8_t *pixel = image->pixels + (y * image->width + x) * image->channels;
  const int expected[3] = {red, green, blue};
  for (int c = 0; c < image->channels; c++)
    ck_assert_msg(abs(pixel[c] - expected[c]) <= tolerance, "(%d, %d) channel %d: %d, expected %d", (int)x, (int)y, c,
                  pixel[c], expected[c]);
}

static int over_white(int value, int alpha) {
  return 255 - ((255 - value) * alpha + 127) / 255;
}

static buffer made;

/* ---- Decoding ---- */

START_TEST(every_kind_of_png) {
  static const int kinds[][2] = {{PNG_COLOR_TYPE_GRAY, 8},       {PNG_COLOR_TYPE_GRAY, 16},
                                 {PNG_COLOR_TYPE_GRAY_ALPHA, 8}, {PNG_COLOR_TYPE_GRAY_ALPHA, 16},
                                 {PNG_COLOR_TYPE_RGB, 8},        {PNG_COLOR_TYPE_RGB, 16},
                                 {PNG_COLOR_TYPE_RGBA, 8},       {PNG_COLOR_TYPE_RGBA, 16}};
  for (int kind = 0; kind < 8; kind++)
    for (int interlace = 0; interlace < 2; interlace++) {
      make_png(&made, kinds[kind][0], kinds[kind][1], interlace, 0);
      const bool colour = kinds[kind][0] & PNG_COLOR_MASK_COLOR, alpha = kinds[kind][0] & PNG_COLOR_MASK_ALPHA;
      comba_image rgb = decode(&made, 3), grey = decode(&made, 1);
      ck_assert_int_eq(rgb.width, WIDTH);
      ck_assert_int_eq(rgb.height, HEIGHT);
      for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++) {
          const int a = alpha ? sample(x, y, 3) : 255;
          int v[3];
          for (int c = 0; c < 3; c++) v[c] = over_white(sample(x, y, colour ? c : 0), a);
          expect_pixel(&rgb, x, y, v[0], v[1], v[2], 0);
          expect_pixel(&grey, x, y, (int)(0.299 * v[0] + 0.587 * v[1] + 0.114 * v[2] + 0.5), 0, 0, 1);
        }
      comba_image_free(&grey);
      comba_image_free(&rgb);
    }
}
END_TEST

START_TEST(palettes_and_few_bits) {
  make_png(&made, PNG_COLOR_TYPE_PALETTE, 8, 1, 0);
  comba_image image = decode(&made, 3);
  expect_pixel(&image, 5, 3, 8, 16, 247, 0);
  expect_pixel(&image, 1, 0, 255, 255, 255, 0); /* the transparent entry */
  comba_image_free(&image);
  for (int bits = 1; bits <= 4; bits *= 2) {
    make_png(&made, PNG_COLOR_TYPE_GRAY, bits, 0, 0);
    image = decode(&made, 1);
    const int largest = (1 << bits) - 1;
    for (int x = 0; x < WIDTH; x++) expect_pixel(&image, x, 2, ((x + 2) & largest) * 255 / largest, 0, 0, 0);
    comba_image_free(&image);
  }
}
END_TEST

START_TEST(jpeg_colours) {
  static const uint8_t grey[1] = {77}, rgb[3] = {200, 60, 120}, ink[4] = {40, 80, 120, 60};
  make_jpeg(&made, JCS_GRAYSCALE, 1, grey, false, 0, 40, 24);
  comba_image image = decode(&made, 3);
  expect_pixel(&image, 30, 20, 77, 77, 77, 1);
  comba_image_free(&image);
  make_jpeg(&made, JCS_RGB, 3, rgb, false, 0, 40, 24);
  image = decode(&made, 3);
  expect_pixel(&image, 30, 20, 200, 60, 120, 3);
  comba_image_free(&image);
  image = decode(&made, 1);
  expect_pixel(&image, 30, 20, 109, 0, 0, 2);
  comba_image_free(&image);
  /* ink as it is: R = (255 - C)(255 - K) / 255; Adobe's files hold 255 - ink */
  make_jpeg(&made, JCS_CMYK, 4, ink, false, 0, 40, 24);
  image = decode(&made, 3);
  expect_pixel(&image, 30, 20, 215 * 195 / 255, 175 * 195 / 255, 135 * 195 / 255, 2);
  comba_image_free(&image);
  make_jpeg(&made, JCS_CMYK, 4, ink, true, 0, 40, 24);
  image = decode(&made, 3);
  expect_pixel(&image, 30, 20, 40 * 60 / 255, 80 * 60 / 255, 120 * 60 / 255, 2);
  comba_image_free(&image);
}
END_TEST

START_TEST(jpeg_is_reduced_no_further_than_asked) {
  static const uint8_t rgb[3] = {200, 60, 120};
  static const int least[] = {0, 12, 25, 26, 50, 51, 100, 101}, side[] = {100, 13, 25, 50, 50, 100, 100, 100};
  make_jpeg(&made, JCS_RGB, 3, rgb, false, 0, 160, 100);
  for (int i = 0; i < 8; i++) {
    comba_image image = {0};
    ck_assert_int_eq(comba_image_decode(&image, made.data, made.size, "made here", 3, least[i]), COMBA_OK);
    ck_assert_int_eq(image.height, side[i]);
    expect_pixel(&image, image.width - 1, image.height - 1, 200, 60, 120, 3);
    comba_image_free(&image);
  }
}
END_TEST

/* Where the stored picture's top left corner is in the upright one, as EXIF's table of the eight orientations says. */
START_TEST(exif_orientation) {
  static const bool right[9] = {0, 0, 1, 1, 0, 0, 1, 1, 0}, bottom[9] = {0, 0, 0, 1, 1, 0, 0, 1, 1};
  for (int orientation = 1; orientation <= 8; orientation++) {
    make_png(&made, PNG_COLOR_TYPE_RGB, 8, 0, orientation);
    comba_image image = decode(&made, 3);
    ck_assert_int_eq(image.width, orientation < 5 ? WIDTH : HEIGHT);
    const int64_t x = right[orientation] ? image.width - 1 : 0, y = bottom[orientation] ? image.height - 1 : 0;
    expect_pixel(&image, x, y, sample(0, 0, 0), sample(0, 0, 1), sample(0, 0, 2), 0);
    /* and its top right corner: across from there in the first four, below or above it in the others */
    const int64_t across = orientation < 5 ? image.width - 1 - x : x,
                  along = orientation < 5 ? y : image.height - 1 - y;
    expect_pixel(&image, across, along, sample(WIDTH - 1, 0, 0), sample(WIDTH - 1, 0, 1), sample(WIDTH - 1, 0, 2), 0);
    comba_image_free(&image);
  }
  static const uint8_t rgb[3] = {200, 60, 120};
  make_jpeg(&made, JCS_RGB, 3, rgb, false, 6, 40, 24);
  comba_image image = decode(&made, 3);
  ck_assert_int_eq(image.width, 24);
  comba_image_free(&image);
}
END_TEST

/* ---- Hostile files ---- */

static void expect_bad(const void *data, size_t size, comba_status expected, const char *part) {
  comba_image image = {0};
  expect_failure(comba_image_decode(&image, data, size, "bad.png", 3, 0), expected, part);
  expect_failure(expected, expected, "bad.png");
  ck_assert_ptr_null(image.pixels);
}

START_TEST(other_content_is_named) {
  expect_bad("", 0, COMBA_ERROR_FORMAT, "empty file");
  expect_bad("a text file", 11, COMBA_ERROR_FORMAT, "found text");
  expect_bad("\x01\x02\x03", 3, COMBA_ERROR_FORMAT, "01 02 03");
  expect_bad("\0\0\0\x18"
             "ftypheic",
             12, COMBA_ERROR_UNSUPPORTED, "HEIC");
  expect_bad("RIFF\x10\0\0\0WEBPVP8 ", 16, COMBA_ERROR_UNSUPPORTED, "WebP");
  expect_bad("GIF89a", 6, COMBA_ERROR_UNSUPPORTED, "GIF");
}
END_TEST

START_TEST(cut_files_fail_at_every_length) {
  static const uint8_t rgb[3] = {200, 60, 120};
  make_png(&made, PNG_COLOR_TYPE_RGB, 8, 1, 3);
  for (size_t size = 8; size < made.size; size++) expect_bad(made.data, size, COMBA_ERROR_FORMAT, "PNG");
  make_jpeg(&made, JCS_RGB, 3, rgb, false, 3, 40, 24);
  for (size_t size = 3; size < made.size - 2; size++) expect_bad(made.data, size, COMBA_ERROR_FORMAT, "JPEG");
}
END_TEST

/* PNG's checksum (CRC-32). */
static uint32_t checksum(const uint8_t *data, size_t size) {
  uint32_t sum = 0xffffffff;
  for (size_t i = 0; i < size; i++) {
    sum ^= data[i];
    for (int bit = 0; bit < 8; bit++) sum = sum >> 1 ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return ~sum;
}

static void put_size(uint8_t *at, int bytes, uint32_t value) {
  for (int i = 0; i < bytes; i++) at[i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

START_TEST(declared_sizes_are_bounded) {
  static const struct {
    uint32_t width, height;
    const char *part;
  } sizes[] = {{0, 5, "0 x 5"}, {5, 0, "5 x 0"}, {0x7fffffff, 0x7fffffff, "at most"}, {8000, 8000, "cannot hold"}};
  static const uint8_t rgb[3] = {200, 60, 120};
  for (int i = 0; i < 4; i++) {
    make_png(&made, PNG_COLOR_TYPE_RGB, 8, 0, 0);
    put_size(made.data + 16, 4, sizes[i].width);
    put_size(made.data + 20, 4, sizes[i].height);
    put_size(made.data + 29, 4, checksum(made.data + 12, 17));
    expect_bad(made.data, made.size, COMBA_ERROR_FORMAT, sizes[i].part);
  }
  make_jpeg(&made, JCS_RGB, 3, rgb, false, 0, 40, 24);
  size_t header = 0;
  while (made.data[header] != 0xff || made.data[header + 1] != 0xc0) header++;
  put_size(made.data + header + 5, 2, 65000);
  put_size(made.data + header + 7, 2, 65000);
  expect_bad(made.data, made.size, COMBA_ERROR_FORMAT, "at most");
  put_size(made.data + header + 5, 2, 8000);
  put_size(made.data + header + 7, 2, 8000);
  expect_bad(made.data, made.size, COMBA_ERROR_FORMAT, "cannot hold");
}
END_TEST

/* Bytes changed, dropped and doubled at random places: a picture or an error, and never more (sanitizers watch). */
START_TEST(altered_files_never_crash) {
  static const uint8_t ink[4] = {40, 80, 120, 60};
  buffer *altered = malloc(sizeof *altered);
  ck_assert_ptr_nonnull(altered);
  for (int kind = 0; kind < 4; kind++) {
    if (kind == 0) make_png(&made, PNG_COLOR_TYPE_RGBA, 16, 1, 6);
    if (kind == 1) make_png(&made, PNG_COLOR_TYPE_PALETTE, 8, 0, 5);
    if (kind == 2) make_jpeg(&made, JCS_RGB, 3, ink, false, 8, 40, 24);
    if (kind == 3) make_jpeg(&made, JCS_CMYK, 4, ink, true, 2, 40, 24);
    for (uint64_t round = 0; round < 500; round++) {
      comba_image image = {0};
      memcpy(altered, &made, sizeof made);
      for (uint64_t change = 0; change <= round % 3; change++) {
        const comba_random4 random = comba_random_bits(7, (uint64_t)kind, 4 * round + change);
        const size_t at = random.value[0] % altered->size;
        altered->data[at] = (uint8_t)random.value[1];
        if (random.value[2] % 4 == 0) memmove(altered->data + at, altered->data + at + 1, altered->size-- - at - 1);
      }
      if (comba_image_decode(&image, altered->data, altered->size, "altered", 1 + 2 * (int)(round & 1), 8) == COMBA_OK)
        comba_image_free(&image);
    }
  }
  free(altered);
}
END_TEST

/* ---- Encoding and resizing ---- */

START_TEST(encoders_come_back) {
  comba_image image = {0};
  ck_assert_int_eq(comba_image_create(&image, WIDTH, HEIGHT, 3), COMBA_OK);
  for (int i = 0; i < WIDTH * HEIGHT * 3; i++) image.pixels[i] = (uint8_t)(i / 3 * 5);
  for (int png = 0; png < 2; png++) {
    uint8_t *data = NULL;
    size_t size = 0;
    ck_assert_int_eq(png ? comba_image_encode_png(&image, &data, &size)
                         : comba_image_encode_jpeg(&image, 95, &data, &size),
                     COMBA_OK);
    comba_image again = {0};
    ck_assert_int_eq(comba_image_decode(&again, data, size, "encoded", 3, 0), COMBA_OK);
    if (png) ck_assert_mem_eq(again.pixels, image.pixels, WIDTH * HEIGHT * 3);
    ck_assert_int_eq(again.width, WIDTH);
    comba_image_free(&again);
    free(data);
  }
  comba_image_free(&image);
}
END_TEST

START_TEST(resizing) {
  static const uint8_t ramp[4 * 2] = {0, 100, 200, 60, 40, 20, 0, 80}; /* 4 wide, 2 high */
  uint8_t out[16 * 16];
  comba_image image = {4, 2, 1, (uint8_t *)ramp};
  ck_assert_int_eq(comba_image_fit(out, &image, 2, COMBA_FIT_CROP), COMBA_OK);
  const uint8_t centre[4] = {100, 200, 20, 0}; /* nothing to scale */
  ck_assert_mem_eq(out, centre, 4);
  ck_assert_int_eq(comba_image_fit(out, &image, 4, COMBA_FIT_PAD), COMBA_OK);
  for (int x = 0; x < 4; x++) {
    ck_assert_int_eq(out[x], 255);
    ck_assert_int_eq(out[4 + x], ramp[x]);
    ck_assert_int_eq(out[8 + x], ramp[4 + x]);
    ck_assert_int_eq(out[12 + x], 255);
  }
  /* to half: a triangle over four source pixels, 1 3 3 1, cut off at the border to 3 3 1 */
  ck_assert_int_eq(comba_image_fit(out, &image, 2, COMBA_FIT_STRETCH), COMBA_OK);
  ck_assert_int_eq(out[0], (3 * 0 + 3 * 100 + 200 + 3) / 7);
  ck_assert_int_eq(out[1], (100 + 3 * 200 + 3 * 60 + 3) / 7);
  /* to twice: between neighbours at a quarter and three quarters */
  ck_assert_int_eq(comba_image_fit(out, &image, 8, COMBA_FIT_STRETCH), COMBA_OK);
  ck_assert_int_eq(out[0], 0);
  ck_assert_int_eq(out[1], 25);
  ck_assert_int_eq(out[2], 75);
  static const int64_t sides[] = {1, 2, 3, 7, 16};
  uint8_t flat[7 * 5];
  memset(flat, 93, sizeof flat);
  image = (comba_image){7, 5, 1, flat};
  for (int i = 0; i < 5; i++)
    for (int fit = COMBA_FIT_CROP; fit <= COMBA_FIT_STRETCH; fit++) {
      ck_assert_int_eq(comba_image_fit(out, &image, sides[i], (comba_fit)fit), COMBA_OK);
      for (int64_t j = 0; j < sides[i] * sides[i]; j++)
        ck_assert(out[j] == 93 || (fit == COMBA_FIT_PAD && out[j] == 255));
    }
}
END_TEST

/* ---- preprocessor_config.json ---- */

static comba_status parse(comba_preprocess *p, const char *text) {
  return comba_preprocess_parse(p, text, strlen(text), "preprocessor_config.json");
}

START_TEST(preprocess_round_trip) {
  char path[] = "/tmp/comba-preprocess-XXXXXX";
  close(mkstemp(path));
  comba_preprocess written = {28, 1, COMBA_FIT_PAD, true, {0.1307}, {0.3081}}, read = {0};
  ck_assert_int_eq(comba_preprocess_write(&written, path), COMBA_OK);
  ck_assert_msg(comba_preprocess_read(&read, path) == COMBA_OK, "%s", comba_last_error());
  ck_assert_int_eq(read.size, 28);
  ck_assert_int_eq(read.channels, 1);
  ck_assert_int_eq(read.fit, COMBA_FIT_PAD);
  ck_assert(read.normalize && read.mean[0] == 0.1307 && read.std[0] == 0.3081);
  unlink(path);
}
END_TEST

START_TEST(preprocess_of_others_and_broken) {
  comba_preprocess p;
  ck_assert_int_eq(
      parse(&p, "{\"size\": {\"height\": 64, \"width\": 64}, \"image_mean\": [0.4, 0.5, 0.6], \"resample\": 2}"),
      COMBA_OK);
  ck_assert_int_eq(p.size, 64);
  ck_assert_int_eq(p.fit, COMBA_FIT_STRETCH);
  ck_assert(p.mean[1] == 0.5 && p.std[1] == 0.5);
  ck_assert_int_eq(parse(&p, "{\"size\": 32, \"do_normalize\": false}"), COMBA_OK);
  ck_assert_int_eq(p.size, 32);
  ck_assert(!p.normalize);
  static const struct {
    const char *text, *part;
  } broken[] = {{"", "line"},
                {"[]", "object"},
                {"{\"size\": 1, \"size\": 2}", "duplicate"},
                {"{\"size\": -1}", "size"},
                {"{\"size\": {\"height\": 3, \"width\": 4}}", "equal"},
                {"{\"size\": 1e99}", "size"},
                {"{\"resample\": 3}", "resample"},
                {"{\"image_std\": [0, 1, 1]}", "image_std"},
                {"{\"image_mean\": [1, 2]}", "image_mean"},
                {"{\"image_mean\": [1], \"image_std\": [1, 1, 1]}", "image_std"},
                {"{\"num_channels\": 2}", "num_channels"},
                {"{\"fit\": \"squeeze\"}", "fit"},
                {"{\"do_rescale\": 7}", "do_rescale"},
                {"{\"rescale_factor\": 1}", "rescale_factor"}};
  for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
    expect_failure(parse(&p, broken[i].text), COMBA_ERROR_FORMAT, broken[i].part);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("images");
  TCase *tests = tcase_create("images");
  tcase_set_timeout(tests, 120);
  tcase_add_test(tests, every_kind_of_png);
  tcase_add_test(tests, palettes_and_few_bits);
  tcase_add_test(tests, jpeg_colours);
  tcase_add_test(tests, jpeg_is_reduced_no_further_than_asked);
  tcase_add_test(tests, exif_orientation);
  tcase_add_test(tests, other_content_is_named);
  tcase_add_test(tests, cut_files_fail_at_every_length);
  tcase_add_test(tests, declared_sizes_are_bounded);
  tcase_add_test(tests, altered_files_never_crash);
  tcase_add_test(tests, encoders_come_back);
  tcase_add_test(tests, resizing);
  tcase_add_test(tests, preprocess_round_trip);
  tcase_add_test(tests, preprocess_of_others_and_broken);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
