/* make-shapes: draws a set of pictures to learn from, ten classes of strokes and shapes.
 *
 * Place, size, turn, proportions, pen, colours, clutter and noise are random, and a shape is as often lighter than its ground
 * as darker: single pixels tell nothing of the class, its form does. Picture number n of a split depends on the seed and n
 * alone. Half of the files are PNG, half JPEG. The folder appears under its name when it is complete. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/random.h"
#include "data/image_write.h"
#include "program/options.h"

enum { CLASSES = 10, MAX_POINTS = 64, MAX_STROKES = 6, MAX_SIZE = 1024 };
static const double pi = 3.14159265358979323846;

/* ---- Random numbers of one picture ---- */

typedef struct source {
  uint64_t seed, stream, counter;
} source;

static double uniform(source *s, double low, double high) {
  return low + (high - low) * comba_random_uniform(s->seed, s->stream, s->counter++);
}

static int whole(source *s, int low, int high) { /* both ends included */
  return low + (int)(uniform(s, 0, 1) * (high - low + 1));
}

/* ---- Shapes: polylines within the circle of radius 1 ---- */

typedef struct point {
  double x, y;
} point;

typedef struct stroke {
  point points[MAX_POINTS];
  int count;
} stroke;

typedef struct shape {
  stroke strokes[MAX_STROKES];
  int count;
} shape;

static stroke *add_stroke(shape *s) {
  return &s->strokes[s->count++];
}

static void add_point(stroke *s, double x, double y) {
  s->points[s->count++] = (point){x, y};
}

static void add_line(shape *s, double x0, double y0, double x1, double y1) {
  stroke *line = add_stroke(s);
  add_point(line, x0, y0);
  add_point(line, x1, y1);
}

/* `corners` points on circles whose radius goes from `first` to `last`, through `turns` turns. */
static void add_winding(shape *s, int corners, double first, double last, double turns) {
  stroke *winding = add_stroke(s);
  for (int i = 0; i <= corners; i++) {
    const double part = (double)i / corners, angle = 2 * pi * (turns * part - 0.25);
    const double radius = first + (last - first) * part;
    add_point(winding, radius * cos(angle), radius * sin(angle));
  }
}

static void draw_arrow(shape *s) {
  add_line(s, 0, 1, 0, -0.95);
  stroke *head = add_stroke(s);
  add_point(head, -0.65, -0.25);
  add_point(head, 0, -0.95);
  add_point(head, 0.65, -0.25);
}

static void draw_crescent(shape *s) {
  stroke *outline = add_stroke(s);
  for (int i = 0; i <= 20; i++) { /* the outer arc, from one horn to the other */
    const double angle = pi * (0.3 + 1.4 * i / 20);
    add_point(outline, cos(angle), sin(angle));
  }
  for (int i = 19; i >= 0; i--) { /* back along a flatter one */
    const double angle = pi * (0.3 + 1.4 * i / 20), horn = cos(pi * 0.3);
    add_point(outline, horn + (cos(angle) - horn) * 0.42, sin(angle));
  }
}

static void draw_cross(shape *s) {
  add_line(s, -1, 0, 1, 0);
  add_line(s, 0, -1, 0, 1);
}

static void draw_ladder(shape *s) {
  add_line(s, -0.45, -1, -0.45, 1);
  add_line(s, 0.45, -1, 0.45, 1);
  for (int i = -1; i <= 1; i++) add_line(s, -0.45, 0.6 * i, 0.45, 0.6 * i);
}

static void draw_ring(shape *s) {
  add_winding(s, 32, 0.95, 0.95, 1);
}

static void draw_spiral(shape *s) {
  add_winding(s, 48, 0.1, 1, 2.25);
}

static void draw_square(shape *s) {
  stroke *outline = add_stroke(s);
  for (int i = 0; i <= 4; i++) add_point(outline, i % 4 == 1 || i % 4 == 2 ? 0.8 : -0.8, i % 4 >= 2 ? 0.8 : -0.8);
}

static void draw_star(shape *s) {
  stroke *outline = add_stroke(s);
  for (int i = 0; i <= 10; i++) {
    const double angle = 2 * pi * (i / 10.0 - 0.25), radius = i % 2 ? 0.42 : 1.05;
    add_point(outline, radius * cos(angle), radius * sin(angle));
  }
}

static void draw_triangle(shape *s) {
  add_winding(s, 3, 1.05, 1.05, 1);
}

static void draw_zigzag(shape *s) {
  stroke *line = add_stroke(s);
  for (int i = 0; i < 5; i++) add_point(line, -1 + 0.5 * i, i % 2 ? -0.6 : 0.6);
}

static const struct {
  const char *name;
  void (*draw)(shape *);
} classes[CLASSES] = {
    {"arrow", draw_arrow},       {"crescent", draw_crescent}, {"cross", draw_cross},   {"ladder", draw_ladder},
    {"ring", draw_ring},         {"spiral", draw_spiral},     {"square", draw_square}, {"star", draw_star},
    {"triangle", draw_triangle}, {"zigzag", draw_zigzag},
};

/* ---- Drawing ---- */

typedef struct colour {
  double value[3];
} colour;

static colour random_colour(source *s) {
  return (colour){{uniform(s, 0, 255), uniform(s, 0, 255), uniform(s, 0, 255)}};
}

static double luma(const colour *c) {
  return 0.299 * c->value[0] + 0.587 * c->value[1] + 0.114 * c->value[2];
}

/* A colour whose lightness differs from `other` by at least `contrast`. */
static colour contrasting_colour(source *s, const colour *other, double contrast) {
  colour c = random_colour(s);
  for (int tries = 0; fabs(luma(&c) - luma(other)) < contrast && tries < 64; tries++) c = random_colour(s);
  if (fabs(luma(&c) - luma(other)) >= contrast) return c;
  const double grey = luma(other) < 128 ? 255 : 0;
  return (colour){{grey, grey, grey}};
}

typedef struct canvas {
  int size;
  double *values; /* (size, size, 3), 0 to 255 */
} canvas;

static double distance_to_segment(double x, double y, point a, point b) {
  const double dx = b.x - a.x, dy = b.y - a.y, length = dx * dx + dy * dy;
  double t = length > 0 ? ((x - a.x) * dx + (y - a.y) * dy) / length : 0;
  t = t < 0 ? 0 : (t > 1 ? 1 : t);
  return hypot(x - a.x - t * dx, y - a.y - t * dy);
}

/* A line with a round pen of radius `pen`; edges are one pixel soft. Points are in pixels. */
static void draw_stroke(canvas *c, const stroke *s, double pen, const colour *ink) {
  point low = s->points[0], high = s->points[0];
  for (int i = 1; i < s->count; i++) {
    low = (point){fmin(low.x, s->points[i].x), fmin(low.y, s->points[i].y)};
    high = (point){fmax(high.x, s->points[i].x), fmax(high.y, s->points[i].y)};
  }
  const double reach = pen + 1;
  const int first_x = (int)fmax(0, low.x - reach), last_x = (int)fmin(c->size - 1, high.x + reach);
  const int first_y = (int)fmax(0, low.y - reach), last_y = (int)fmin(c->size - 1, high.y + reach);
  for (int y = first_y; y <= last_y; y++)
    for (int x = first_x; x <= last_x; x++) {
      double distance = INFINITY;
      for (int i = 0; i + 1 < s->count; i++)
        distance = fmin(distance, distance_to_segment(x + 0.5, y + 0.5, s->points[i], s->points[i + 1]));
      const double cover = fmin(1, fmax(0, pen + 0.5 - distance));
      double *value = c->values + (y * c->size + x) * 3;
      for (int channel = 0; channel < 3; channel++) value[channel] += cover * (ink->value[channel] - value[channel]);
    }
}

/* A ground that runs from one colour to another in a random direction. */
static void draw_ground(canvas *c, source *s, const colour *ground) {
  const double angle = uniform(s, 0, 2 * pi), dx = cos(angle) / c->size, dy = sin(angle) / c->size;
  const colour slope = {{uniform(s, -130, 130), uniform(s, -130, 130), uniform(s, -130, 130)}};
  for (int y = 0; y < c->size; y++)
    for (int x = 0; x < c->size; x++)
      for (int channel = 0; channel < 3; channel++)
        c->values[(y * c->size + x) * 3 + channel] =
            ground->value[channel] + slope.value[channel] * ((x - c->size / 2) * dx + (y - c->size / 2) * dy);
}

/* Short thin strokes and dots of any colour. */
static void draw_clutter(canvas *c, source *s, double unit) {
  for (int i = whole(s, 3, 6); i > 0; i--) {
    stroke mark = {.count = 2};
    const double angle = uniform(s, 0, 2 * pi), length = uniform(s, 0, 9) * unit;
    const point at = {uniform(s, 0, c->size), uniform(s, 0, c->size)};
    const colour ink = random_colour(s);
    mark.points[0] = at;
    mark.points[1] = (point){at.x + length * cos(angle), at.y + length * sin(angle)};
    draw_stroke(c, &mark, uniform(s, 0.4, 1.0) * unit, &ink);
  }
}

/* Turns, stretches, scales and moves a shape into the picture. */
static void place_shape(shape *form, source *s, int size, double unit) {
  const double turn = uniform(s, -0.5, 0.5), scale = uniform(s, 6.5, 10.5) * unit, stretch = uniform(s, 0.85, 1.18);
  const double mirror = uniform(s, 0, 1) < 0.5 ? -1 : 1;
  const double room = fmax(0, size / 2.0 - scale * 0.98 - unit);
  const double left = size / 2.0 + uniform(s, -1, 1) * room, top = size / 2.0 + uniform(s, -1, 1) * room;
  for (int i = 0; i < form->count; i++)
    for (int j = 0; j < form->strokes[i].count; j++) {
      point *p = &form->strokes[i].points[j];
      const double x = p->x * stretch * mirror, y = p->y / stretch;
      p->x = left + scale * (x * cos(turn) - y * sin(turn));
      p->y = top + scale * (x * sin(turn) + y * cos(turn));
    }
}

static void draw_picture(comba_image *image, canvas *c, source *s, int label) {
  const double unit = c->size / 32.0; /* lengths are in pixels of a picture of 32 */
  const colour ground = random_colour(s), ink = contrasting_colour(s, &ground, 100);
  shape form = {0};
  draw_ground(c, s, &ground);
  draw_clutter(c, s, unit);
  classes[label].draw(&form);
  place_shape(&form, s, c->size, unit);
  const double pen = uniform(s, 1.0, 1.5) * unit;
  for (int i = 0; i < form.count; i++) draw_stroke(c, &form.strokes[i], pen, &ink);
  const double noise = uniform(s, 4, 14);
  for (int i = 0; i < c->size * c->size * 3; i++) {
    const double value = c->values[i] + noise * comba_random_normal(s->seed, s->stream + 1, (uint64_t)i);
    image->pixels[i] = (uint8_t)fmin(255, fmax(0, round(value)));
  }
}

/* ---- Files ---- */

typedef struct arguments {
  const char *output;
  uint64_t seed;
  int train, test, size;
} arguments;

static comba_status write_plain(const char *path, const uint8_t *data, size_t size) {
  FILE *file = fopen(path, "wb");
  bool good = file && fwrite(data, 1, size, file) == size;
  if (file && fclose(file) != 0) good = false;
  return good ? COMBA_OK : comba_fail(COMBA_ERROR_IO, "%s: cannot write: %s", path, strerror(errno));
}

static comba_status write_split(const arguments *a, const char *folder, const char *split, int count) {
  comba_status status = COMBA_OK;
  comba_image image = {0};
  uint8_t *data = NULL;
  size_t size = 0;
  char *path = NULL;
  const size_t path_size = strlen(folder) + 64;
  canvas c = {a->size, malloc((size_t)a->size * (size_t)a->size * 3 * sizeof(double))};
  path = malloc(path_size);
  if (!c.values || !path) {
    status = comba_fail_memory((size_t)a->size * (size_t)a->size * 24, "a picture");
    goto cleanup;
  }
  COMBA_TRY(comba_image_create(&image, a->size, a->size, 3));
  for (int label = 0; label < CLASSES; label++) {
    snprintf(path, path_size, "%s/%s/%s", folder, split, classes[label].name);
    COMBA_TRY(comba_folder_make(path));
  }
  for (int i = 0; i < count; i++) {
    const int label = i % CLASSES;
    source s = {a->seed, comba_random_stream(split) + 2 * (uint64_t)i, 0};
    draw_picture(&image, &c, &s, label);
    const bool png = uniform(&s, 0, 1) < 0.5;
    COMBA_TRY(png ? comba_image_encode_png(&image, &data, &size)
                  : comba_image_encode_jpeg(&image, whole(&s, 80, 95), &data, &size));
    snprintf(path, path_size, "%s/%s/%s/%05d.%s", folder, split, classes[label].name, i, png ? "png" : "jpg");
    COMBA_TRY(write_plain(path, data, size));
    free(data);
    data = NULL;
  }
cleanup:
  comba_image_free(&image);
  free(c.values);
  free(data);
  free(path);
  return status;
}

/* Everything goes into a folder beside the destination, which takes its name at the end. */
static comba_status make_set(const arguments *a) {
  comba_status status = COMBA_OK;
  char *parent = NULL, *made = NULL;
  const char *slash;
  char name[64] = "";
  bool empty = false;
  char *output = strdup(a->output);
  if (!output) return comba_fail_memory(strlen(a->output), "a path");
  for (size_t length = strlen(output); length > 1 && output[length - 1] == '/';) output[--length] = 0;
  slash = strrchr(output, '/');
  COMBA_TRY(comba_folder_is_empty(output, &empty));
  if (!empty) {
    status = comba_fail(COMBA_ERROR_ARGUMENT, "%s: folder is not empty, expected a new or an empty one", output);
    goto cleanup;
  }
  parent = slash == output ? strdup("/") : (slash ? strndup(output, (size_t)(slash - output)) : strdup("."));
  if (!parent) {
    status = comba_fail_memory(strlen(output), "a path");
    goto cleanup;
  }
  COMBA_TRY(comba_folder_make(parent));
  snprintf(name, sizeof name, ".make-shapes-%ld", (long)getpid());
  COMBA_TRY(comba_path_join(&made, parent, name));
  COMBA_TRY(write_split(a, made, "train", a->train));
  COMBA_TRY(write_split(a, made, "test", a->test));
  COMBA_TRY(comba_folder_replace(parent, name, slash ? slash + 1 : output));
  free(made);
  made = NULL;
cleanup:
  if (made) { /* unfinished; the message of what went wrong first is the one to keep */
    char message[1024];
    snprintf(message, sizeof message, "%s", comba_last_error());
    comba_folder_remove(parent, name);
    comba_fail(status, "%s", message);
  }
  free(made);
  free(parent);
  free(output);
  return status;
}

/* ---- Command line ---- */

static error_t parse_option(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  switch (key) {
  case 'o': a->output = text; return 0;
  case 's': a->seed = (uint64_t)comba_option_integer(state, "--seed", text, 0, INT32_MAX); return 0;
  case 't': a->train = (int)comba_option_integer(state, "--train", text, CLASSES, 10000000); return 0;
  case 'e': a->test = (int)comba_option_integer(state, "--test", text, CLASSES, 10000000); return 0;
  case 'p': a->size = (int)comba_option_integer(state, "--size", text, 16, MAX_SIZE); return 0;
  case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", text); return 0;
  case ARGP_KEY_END:
    if (!a->output || !a->output[0]) argp_error(state, "--output is missing, expected a folder");
    return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

int main(int argc, char **argv) {
  static const struct argp_option options[] = {
      {"output", 'o', "DIR", 0, "Folder to make, with train/CLASS/ and test/CLASS/ in it", 0},
      {"seed", 's', "N", 0, "Seed of all that is random (0)", 0},
      {"train", 't', "N", 0, "Training pictures (8000)", 0},
      {"test", 'e', "N", 0, "Held-out pictures (2000)", 0},
      {"size", 'p', "N", 0, "Width and height in pixels (32)", 0},
      {0}};
  static const struct argp argp = {
      options, parse_option,
      NULL,    "Draws a set of pictures in ten classes of shapes, PNG and JPEG mixed, to learn from.",
      NULL,    NULL,
      NULL};
  arguments a = {.train = 8000, .test = 2000, .size = 32};
  argp_err_exit_status = COMBA_EXIT_USAGE;
  argp_parse(&argp, argc, argv, 0, NULL, &a);
  if (make_set(&a) != COMBA_OK) {
    fprintf(stderr, "make-shapes: %s\n", comba_last_error());
    return 1;
  }
  printf("%s: %d training and %d held-out pictures of %d x %d pixels in %d classes\n", a.output, a.train, a.test,
         a.size, a.size, CLASSES);
  return 0;
}
