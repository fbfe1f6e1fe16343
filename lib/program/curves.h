/* curves.svg: training and validation figures of a run over its steps. */
#ifndef COMBA_PROGRAM_CURVES_H
#define COMBA_PROGRAM_CURVES_H

#include <stdbool.h>

#include "core/status.h"

/* Draws the log at `log_path` (log.jsonl) into the SVG file `svg_path`: with gnuplot if it is on the PATH, else as a plain SVG
 * of our own that says so. */
comba_status comba_curves_write(const char *log_path, const char *svg_path);
/* Whether gnuplot was found. */
bool comba_curves_have_gnuplot(void);

#endif
