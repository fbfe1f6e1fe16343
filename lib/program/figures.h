/* Pictures for people, as PNG files. */
#ifndef COMBA_PROGRAM_FIGURES_H
#define COMBA_PROGRAM_FIGURES_H

#include "core/status.h"

/* The confusion matrix counts (classes, classes), [label][predicted]: names at both sides, each cell with its count, shaded by its
 * share of the row. */
comba_status comba_figure_confusion(const char *path, const char *const *names, int64_t classes, const int64_t *counts);

typedef struct comba_figure_mistake {
  const uint8_t *pixels; /* (side, side, channels) */
  const char *label, *predicted;
  float probability; /* of the predicted class */
} comba_figure_mistake;

/* A sheet of wrongly classified pictures, enlarged where they are small, each above its true class, what it was taken for and how
 * surely. None at all gives a sheet that says so. */
comba_status comba_figure_mistakes(const char *path, const comba_figure_mistake *mistakes, int64_t count, int64_t side,
                                   int channels);

#endif
