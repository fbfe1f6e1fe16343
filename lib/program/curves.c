#include "program/curves.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"

extern char **environ;

enum { LOG_LIMIT = 1 << 30, PANELS = 3, MAX_SERIES = 2 };

typedef struct series {
  const char *name;
  double *x, *y;
  size_t count;
} series;

typedef struct panel {
  const char *title;
  series line[MAX_SERIES];
} panel;

typedef struct curves {
  panel panel[PANELS];
} curves;

static bool append(series *s, double x, double y) {
  if (!(fabs(y) < 1e30)) return true; /* 1e30 stands for a loss that is not finite */
  if (!(s->count & (s->count - 1))) { /* room doubles at each power of two */
    const size_t room = s->count ? 2 * s->count : 1;
    double *xs = realloc(s->x, room * sizeof *xs), *ys;
    if (!xs) return false;
    s->x = xs;
    ys = realloc(s->y, room * sizeof *ys);
    if (!ys) return false;
    s->y = ys;
  }
  s->x[s->count] = x;
  s->y[s->count++] = y;
  return true;
}

static void release(curves *c) {
  for (int p = 0; p < PANELS; p++)
    for (int i = 0; i < MAX_SERIES; i++) {
      free(c->panel[p].line[i].x);
      free(c->panel[p].line[i].y);
    }
}

static comba_status read_log(const char *path, curves *c) {
  char *text = NULL;
  size_t size = 0;
  comba_status status = comba_file_read(path, LOG_LIMIT, &text, &size);
  if (status != COMBA_OK) return status;
  bool room = true;
  for (char *line = text, *end; room && (end = memchr(line, '\n', size - (size_t)(line - text))); line = end + 1) {
    json_t *object = json_loadb(line, (size_t)(end - line), 0, NULL);
    const double step = json_number_value(json_object_get(object, "step"));
    const json_t *loss = json_object_get(object, "loss"), *rate = json_object_get(object, "learning_rate");
    const json_t *evaluation = json_object_get(object, "evaluation");
    const json_t *validation = json_object_get(evaluation, "loss"), *accuracy = json_object_get(evaluation, "accuracy");
    if (json_is_number(loss)) room = room && append(&c->panel[0].line[0], step, json_number_value(loss));
    if (json_is_number(validation)) room = room && append(&c->panel[0].line[1], step, json_number_value(validation));
    if (json_is_number(accuracy)) room = room && append(&c->panel[1].line[0], step, 100 * json_number_value(accuracy));
    if (json_is_number(rate)) room = room && append(&c->panel[2].line[0], step, json_number_value(rate));
    json_decref(object);
  }
  free(text);
  return room ? COMBA_OK : comba_fail_memory(size, "the curves");
}

static bool has_points(const panel *p) {
  return p->line[0].count || p->line[1].count;
}

static int panels(const curves *c) {
  int count = 0;
  for (int p = 0; p < PANELS; p++) count += has_points(&c->panel[p]);
  return count;
}

/* ---- gnuplot ------------------------------------------------------------------------------------------------------- */

bool comba_curves_have_gnuplot(void) {
  const char *path = getenv("PATH");
  char candidate[4096];
  for (size_t length; path && *path; path += length + (path[length] == ':')) {
    length = strcspn(path, ":");
    snprintf(candidate, sizeof candidate, "%.*s/gnuplot", (int)length, path);
    if (length && access(candidate, X_OK) == 0) return true;
  }
  return false;
}

static void write_script(const curves *c, FILE *script) {
  const int count = panels(c);
  fprintf(script,
          "set terminal svg size 800,%d background 'white' font 'sans,12'\nset multiplot layout %d,1\nset grid\n",
          280 * count, count);
  for (int p = 0; p < PANELS; p++) {
    const panel *panel = &c->panel[p];
    if (!has_points(panel)) continue;
    fprintf(script, "set ylabel '%s'\nset xlabel 'step'\n", panel->title);
    for (int i = 0; i < MAX_SERIES; i++) {
      if (!panel->line[i].count) continue;
      fprintf(script, "$line%d << EOD\n", i);
      for (size_t k = 0; k < panel->line[i].count; k++)
        fprintf(script, "%.17g %.9g\n", panel->line[i].x[k], panel->line[i].y[k]);
      fprintf(script, "EOD\n");
    }
    const char *separator = "plot ";
    for (int i = 0; i < MAX_SERIES; i++) {
      if (!panel->line[i].count) continue;
      fprintf(script, "%s$line%d using 1:2 with %s lw 2 title '%s'", separator, i,
              panel->line[i].count > 60 ? "lines" : "linespoints pt 7 ps 0.4", panel->line[i].name);
      separator = ", ";
    }
    fprintf(script, "\n");
  }
  fprintf(script, "unset multiplot\n");
  fflush(script);
  rewind(script);
}

/* Runs gnuplot from one temporary file into another; false if anything fails, and the plain drawing takes over. */
static bool draw_with_gnuplot(const curves *c, const char *svg_path) {
  FILE *script = tmpfile(), *picture = tmpfile(), *silence = fopen("/dev/null", "w");
  bool drawn = false;
  posix_spawn_file_actions_t actions;
  if (script && picture && silence && posix_spawn_file_actions_init(&actions) == 0) {
    write_script(c, script);
    posix_spawn_file_actions_adddup2(&actions, fileno(script), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, fileno(picture), STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, fileno(silence), STDERR_FILENO);
    pid_t child;
    int result = 1;
    char *const arguments[] = {"gnuplot", NULL};
    if (posix_spawnp(&child, "gnuplot", &actions, NULL, arguments, environ) == 0)
      while (waitpid(child, &result, 0) < 0 && errno == EINTR) continue;
    posix_spawn_file_actions_destroy(&actions);
    const long size = result == 0 && fseek(picture, 0, SEEK_END) == 0 ? ftell(picture) : 0;
    char *text = size > 0 ? malloc((size_t)size) : NULL;
    rewind(picture);
    drawn = text && fread(text, 1, (size_t)size, picture) == (size_t)size &&
            comba_file_write(svg_path, text, (size_t)size) == COMBA_OK;
    free(text);
  }
  if (script) fclose(script);
  if (picture) fclose(picture);
  if (silence) fclose(silence);
  return drawn;
}

/* ---- Without gnuplot ----------------------------------------------------------------------------------------------- */

static void draw_panel(FILE *out, const panel *panel, int top) {
  static const char *const colors[MAX_SERIES] = {"#3366aa", "#cc5522"};
  const int left = 80, right = 780, height = 210, bottom = top + height;
  double low = INFINITY, high = -INFINITY, last = 1;
  for (int i = 0; i < MAX_SERIES; i++)
    for (size_t k = 0; k < panel->line[i].count; k++) {
      low = fmin(low, panel->line[i].y[k]);
      high = fmax(high, panel->line[i].y[k]);
      last = fmax(last, panel->line[i].x[k]);
    }
  if (high <= low) high = low + 1;
  fprintf(out, "<rect x='%d' y='%d' width='%d' height='%d' fill='none' stroke='#999'/>\n", left, top, right - left,
          height);
  fprintf(out, "<text x='%d' y='%d'>%s</text>\n", left, top - 8, panel->title);
  for (int tick = 0; tick <= 4; tick++) {
    const double share = tick / 4.0;
    fprintf(out, "<text x='%d' y='%.0f' text-anchor='end'>%.4g</text>\n", left - 6, bottom - share * height + 4,
            low + share * (high - low));
    fprintf(out, "<text x='%.0f' y='%d' text-anchor='middle'>%.6g</text>\n", left + share * (right - left), bottom + 16,
            share * last);
  }
  for (int i = 0; i < MAX_SERIES; i++) {
    if (!panel->line[i].count) continue;
    fprintf(out, "<text x='%d' y='%d' text-anchor='end' fill='%s'>%s</text>\n", right - 8, top + 18 + 16 * i, colors[i],
            panel->line[i].name);
    fprintf(out, "<polyline fill='none' stroke='%s' stroke-width='1.5' points='", colors[i]);
    for (size_t k = 0; k < panel->line[i].count; k++)
      fprintf(out, "%.1f,%.1f ", left + panel->line[i].x[k] / last * (right - left),
              bottom - (panel->line[i].y[k] - low) / (high - low) * height);
    fprintf(out, "'/>\n");
  }
}

static comba_status draw_plainly(const curves *c, const char *svg_path) {
  char *text = NULL;
  size_t size = 0;
  FILE *out = open_memstream(&text, &size);
  if (!out) return comba_fail_memory(0, "curves.svg");
  const int height = 280 * panels(c) + 30;
  fprintf(out,
          "<svg xmlns='http://www.w3.org/2000/svg' width='800' height='%d' font-family='sans-serif' "
          "font-size='12'>\n<rect width='100%%' height='100%%' fill='white'/>\n",
          height);
  int top = 40;
  for (int p = 0; p < PANELS; p++) {
    if (!has_points(&c->panel[p])) continue;
    draw_panel(out, &c->panel[p], top);
    top += 280;
  }
  fprintf(out, "<text x='80' y='%d' fill='#777'>Plain drawing: gnuplot was not found.</text>\n</svg>\n", height - 10);
  comba_status status = fclose(out) == 0 ? COMBA_OK : comba_fail_memory(0, "curves.svg");
  if (status == COMBA_OK) status = comba_file_write(svg_path, text, size);
  free(text);
  return status;
}

comba_status comba_curves_write(const char *log_path, const char *svg_path) {
  curves c = {.panel = {{"loss", {{.name = "training"}, {.name = "validation"}}},
                        {"accuracy, %", {{.name = "validation"}}},
                        {"learning rate", {{.name = "learning rate"}}}}};
  comba_status status = read_log(log_path, &c);
  if (status == COMBA_OK && !(panels(&c) && comba_curves_have_gnuplot() && draw_with_gnuplot(&c, svg_path)))
    status = draw_plainly(&c, svg_path);
  release(&c);
  return status;
}
