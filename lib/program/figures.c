#include "program/figures.h"

#include <stdio.h>
#include <stdlib.h>

#include "data/resize.h"
#include "program/canvas.h"

enum { MARGIN = 16, GAP = 8, NAME_CHARACTERS = 20, MAX_CLASSES = 2000 };
enum { INK = 0x202020, PALE = 0x707070, RIGHT = 0x1b6e3c, WRONG = 0xb3261e, EMPTY = 0xf6f6f6 };

/* ---- Confusion matrix ---- */

/* From white at 0 to `full` at 1. */
static comba_colour shade(double share, comba_colour full) {
  comba_colour colour = 0;
  for (int shift = 16; shift >= 0; shift -= 8) {
    const double part = 255 - share * (255 - (double)(full >> shift & 255));
    colour |= (comba_colour)(part + 0.5) << shift;
  }
  return colour;
}

typedef struct layout {
  int64_t cell;      /* width and height */
  int scale;         /* of counts and names; 0: too many classes for text */
  int64_t left, top; /* of the first cell */
  int64_t width, height;
} layout;

static layout lay_out(const char *const *names, int64_t classes, int64_t largest) {
  char digits[24];
  layout l = {.scale = classes <= 30 ? 2 : (classes <= 80 ? 1 : 0)};
  const int64_t length = snprintf(digits, sizeof digits, "%lld", (long long)largest);
  int64_t longest = 0;
  for (int64_t i = 0; i < classes; i++) {
    const int64_t name = comba_text_length(names[i], NAME_CHARACTERS);
    longest = name > longest ? name : longest;
  }
  l.cell = l.scale ? (length + 1) * COMBA_TEXT_WIDTH * l.scale : (classes <= 400 ? 4 : 2);
  if (l.scale && l.cell < 20 * l.scale) l.cell = 20 * l.scale;
  /* two lines of 2 x text height say what the axes are; then the names */
  l.left = l.top = MARGIN + 2 * COMBA_TEXT_HEIGHT + GAP + longest * COMBA_TEXT_WIDTH * l.scale + GAP;
  l.width = l.left + classes * l.cell + MARGIN;
  l.height = l.top + classes * l.cell + MARGIN;
  return l;
}

static void draw_cell(comba_canvas *canvas, const layout *l, int64_t row, int64_t column, int64_t count,
                      int64_t total) {
  const int64_t x = l->left + column * l->cell, y = l->top + row * l->cell, gap = l->scale ? 1 : 0;
  const double share = total ? (double)count / (double)total : 0;
  /* a wrong cell has its full colour at half of the row: few mistakes must be seen */
  const double strength = row == column ? share : (share > 0.5 ? 1 : 2 * share);
  comba_canvas_rectangle(canvas, x, y, l->cell - gap, l->cell - gap,
                         count ? shade(0.06 + 0.94 * strength, row == column ? RIGHT : WRONG) : EMPTY);
  if (!l->scale || !count) return;
  char text[24];
  const int64_t length = snprintf(text, sizeof text, "%lld", (long long)count);
  comba_canvas_text(canvas, x + (l->cell - length * COMBA_TEXT_WIDTH * l->scale) / 2 + l->scale / 2,
                    y + (l->cell - 7 * l->scale) / 2, l->scale, strength > 0.55 ? 0xffffff : INK, text, length);
}

comba_status comba_figure_confusion(const char *path, const char *const *names, int64_t classes,
                                    const int64_t *counts) {
  comba_status status = COMBA_OK;
  comba_canvas canvas = {0};
  int64_t largest = 0;
  if (classes < 1 || classes > MAX_CLASSES)
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: confusion matrix of %lld classes, expected 1 to %d", path,
                      (long long)classes, MAX_CLASSES);
  for (int64_t i = 0; i < classes * classes; i++) largest = counts[i] > largest ? counts[i] : largest;
  const layout l = lay_out(names, classes, largest);
  COMBA_TRY(comba_canvas_create(&canvas, l.width, l.height));
  comba_canvas_text(&canvas, l.left, MARGIN, 2, PALE, "predicted", NAME_CHARACTERS);
  comba_canvas_text_upwards(&canvas, MARGIN, l.top + 10 * COMBA_TEXT_WIDTH * 2, 2, PALE, "true class", NAME_CHARACTERS);
  for (int64_t row = 0; row < classes; row++) {
    int64_t total = 0;
    for (int64_t column = 0; column < classes; column++) total += counts[row * classes + column];
    for (int64_t column = 0; column < classes; column++)
      draw_cell(&canvas, &l, row, column, counts[row * classes + column], total);
    if (!l.scale) continue;
    const int64_t middle = row * l.cell + (l.cell - 7 * l.scale) / 2;
    const int64_t length = comba_text_length(names[row], NAME_CHARACTERS) * COMBA_TEXT_WIDTH * l.scale;
    comba_canvas_text(&canvas, l.left - GAP - length, l.top + middle, l.scale, INK, names[row], NAME_CHARACTERS);
    comba_canvas_text_upwards(&canvas, l.left + middle, l.top - GAP, l.scale, INK, names[row], NAME_CHARACTERS);
  }
  COMBA_TRY(comba_canvas_write(&canvas, path));
cleanup:
  comba_canvas_free(&canvas);
  return status;
}

/* ---- Mistakes ---- */

enum { TILE = 160, COLUMNS = 6, LINE = 2 * COMBA_TEXT_HEIGHT + 2 };

/* Large letters where the text fits under the picture, small ones where not. */
static void draw_caption(comba_canvas *canvas, int64_t left, int64_t top, comba_colour colour, const char *text) {
  const int64_t large = TILE / (2 * COMBA_TEXT_WIDTH), small = TILE / COMBA_TEXT_WIDTH;
  if (comba_text_length(text, INT64_MAX) <= large)
    comba_canvas_text(canvas, left, top, 2, colour, text, large);
  else
    comba_canvas_text(canvas, left, top + COMBA_TEXT_HEIGHT / 2, 1, colour, text, small);
}

/* The picture in the middle of its tile: small ones in whole multiples, large ones reduced. */
static comba_status draw_tile(comba_canvas *canvas, int64_t left, int64_t top, const comba_image *picture) {
  comba_status status = COMBA_OK;
  comba_image reduced = {0};
  const comba_image *shown = picture;
  if (picture->width > TILE) {
    COMBA_TRY(comba_image_create(&reduced, TILE, TILE, picture->channels));
    COMBA_TRY(comba_image_fit(reduced.pixels, picture, TILE, COMBA_FIT_CROP));
    shown = &reduced;
  }
  const int64_t scale = TILE / shown->width, space = (TILE - shown->width * scale) / 2;
  comba_canvas_image(canvas, left + space, top + space, scale, shown);
cleanup:
  comba_image_free(&reduced);
  return status;
}

comba_status comba_figure_mistakes(const char *path, const comba_figure_mistake *mistakes, int64_t count, int64_t side,
                                   int channels) {
  static const char title[] = "The worst mistakes", none[] = "No mistakes";
  comba_status status = COMBA_OK;
  comba_canvas canvas = {0};
  const int64_t columns = count < COLUMNS ? (count < 3 ? 3 : count) : COLUMNS, rows = (count + COLUMNS - 1) / COLUMNS;
  const int64_t head = MARGIN + LINE + COMBA_TEXT_HEIGHT + GAP, tile_height = TILE + GAP + 2 * LINE + MARGIN;
  COMBA_TRY(comba_canvas_create(&canvas, MARGIN + columns * (TILE + MARGIN), head + MARGIN + rows * tile_height));
  comba_canvas_text(&canvas, MARGIN, MARGIN, 2, INK, count ? title : none, sizeof title);
  comba_canvas_text(&canvas, MARGIN, MARGIN + LINE, 1, PALE,
                    count ? "below each picture: its true class, and what it was taken for and how surely" : "", 100);
  for (int64_t i = 0; i < count; i++) {
    const int64_t left = MARGIN + i % COLUMNS * (TILE + MARGIN), top = head + MARGIN + i / COLUMNS * tile_height;
    const comba_image picture = {side, side, channels, (uint8_t *)mistakes[i].pixels};
    char said[256];
    snprintf(said, sizeof said, "%.0f%% %.200s", 100 * (double)mistakes[i].probability, mistakes[i].predicted);
    COMBA_TRY(draw_tile(&canvas, left, top, &picture));
    draw_caption(&canvas, left, top + TILE + GAP, RIGHT, mistakes[i].label);
    draw_caption(&canvas, left, top + TILE + GAP + LINE, WRONG, said);
  }
  COMBA_TRY(comba_canvas_write(&canvas, path));
cleanup:
  comba_canvas_free(&canvas);
  return status;
}
