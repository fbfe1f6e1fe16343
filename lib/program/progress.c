#include "program/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BAR = 24 };

double comba_clock(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int columns(void) {
  struct winsize size;
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

/* "1:02:03" or "2:03" */
static void duration(double seconds, char text[24]) {
  const long whole = seconds > 0 && seconds < 1e8 ? (long)(seconds + 0.5) : 0;
  if (whole >= 3600)
    snprintf(text, 24, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
  else
    snprintf(text, 24, "%ld:%02ld", whole / 60, whole % 60);
}

void comba_progress_start(comba_progress *progress, const char *label, const char *unit, int64_t start, int64_t total,
                          bool quiet) {
  *progress = (comba_progress){.label = label, .unit = unit, .start = start, .total = total, .quiet = quiet};
  progress->terminal = isatty(STDERR_FILENO);
  progress->began = comba_clock();
  progress->shown = progress->terminal ? 0 : progress->began;
}

void comba_progress_update(comba_progress *progress, int64_t done, const char *format, ...) {
  if (progress->quiet) return;
  const double now = comba_clock();
  if (now - progress->shown < (progress->terminal ? 0.1 : 10)) return;
  progress->shown = now;

  char words[256], left[24], line[512], bar[BAR + 1];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(words, sizeof words, format, arguments);
  va_end(arguments);
  const double elapsed = now - progress->began;
  const double rate = elapsed > 0 ? (double)(done - progress->start) / elapsed : 0;
  duration(rate > 0 ? (double)(progress->total - done) / rate : 0, left);
  const int64_t total = progress->total > 0 ? progress->total : 1;
  for (int i = 0; i < BAR; i++) bar[i] = (int64_t)i * total < done * BAR ? '#' : '.';
  bar[BAR] = 0;
  snprintf(line, sizeof line, "%s %s%s%s%lld/%lld %s  %s  %.3g %s/s  %s left", progress->label,
           progress->terminal ? "[" : "", progress->terminal ? bar : "", progress->terminal ? "] " : "",
           (long long)done, (long long)progress->total, progress->unit, words, rate, progress->unit, left);
  if (!progress->terminal) {
    fprintf(stderr, "%s\n", line);
    return;
  }
  const int width = columns() - 1;
  if ((int)strlen(line) > width) line[width] = 0;
  fprintf(stderr, "\r%s%*s", line, progress->width > (int)strlen(line) ? progress->width - (int)strlen(line) : 0, "");
  progress->width = (int)strlen(line);
  fflush(stderr);
}

void comba_progress_clear(comba_progress *progress) {
  if (progress->quiet || !progress->terminal || !progress->width) return;
  fprintf(stderr, "\r%*s\r", progress->width, "");
  progress->width = 0;
  fflush(stderr);
}

void comba_progress_print(comba_progress *progress, const char *format, ...) {
  if (progress->quiet) return;
  comba_progress_clear(progress);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
}
