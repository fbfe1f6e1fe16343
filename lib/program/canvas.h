/* A white RGB picture to draw on: rectangles, text in a built-in font, pictures. What lies outside is cut off. */
#ifndef COMBA_PROGRAM_CANVAS_H
#define COMBA_PROGRAM_CANVAS_H

#include "data/image.h"

typedef struct comba_canvas {
  comba_image image;
} comba_canvas;

/* 0xRRGGBB */
typedef uint32_t comba_colour;

/* A character's cell at scale 1, with the gap to the next; scale n is n times as large. */
enum { COMBA_TEXT_WIDTH = 6, COMBA_TEXT_HEIGHT = 10 };

comba_status comba_canvas_create(comba_canvas *canvas, int64_t width, int64_t height);
void comba_canvas_free(comba_canvas *canvas);
comba_status comba_canvas_write(const comba_canvas *canvas, const char *path);

void comba_canvas_rectangle(comba_canvas *canvas, int64_t left, int64_t top, int64_t width, int64_t height,
                            comba_colour colour);
/* Text from its top left corner, at most `characters` of it (a longer one ends in ".."). What is not ASCII is drawn as '?'. */
void comba_canvas_text(comba_canvas *canvas, int64_t left, int64_t top, int scale, comba_colour colour,
                       const char *text, int64_t characters);
/* The same upwards from its bottom left corner. */
void comba_canvas_text_upwards(comba_canvas *canvas, int64_t left, int64_t bottom, int scale, comba_colour colour,
                               const char *text, int64_t characters);
/* Characters that the functions above draw. */
int64_t comba_text_length(const char *text, int64_t characters);
/* Each pixel of the picture as a square of `scale`. */
void comba_canvas_image(comba_canvas *canvas, int64_t left, int64_t top, int64_t scale, const comba_image *image);

#endif
