/* What a person sees while work goes on: a bar with rate and time left on a terminal, a plain line now and then elsewhere,
 * nothing with --quiet. Everything goes to standard error, so that results alone are on standard output. */
#ifndef COMBA_PROGRAM_PROGRESS_H
#define COMBA_PROGRAM_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct comba_progress {
  const char *label, *unit; /* "train", "step" */
  int64_t start, total;
  bool quiet, terminal;
  double began, shown; /* seconds on the monotonic clock */
  int width;           /* characters of the line on screen */
} comba_progress;

/* Seconds on the monotonic clock. */
double comba_clock(void);

/* `start` units are done already (a resumed run): rate and time left count from there. */
void comba_progress_start(comba_progress *progress, const char *label, const char *unit, int64_t start, int64_t total,
                          bool quiet);
/* Shows `done` of total and a few words ("loss 1.234"); at most ten times a second, every ten seconds where plain. */
void comba_progress_update(comba_progress *progress, int64_t done, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Takes the bar away, to print something else or at the end. */
void comba_progress_clear(comba_progress *progress);
/* A line that stays, above the bar; nothing with --quiet. */
void comba_progress_print(comba_progress *progress, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
