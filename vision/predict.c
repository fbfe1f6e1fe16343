#include "vision.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "data/preprocess.h"
#include "model/model_private.h"

enum { TOP = 5 };

typedef struct options {
  comba_common_options common;
  const char *model;
  char **images;
  int count;
  bool csv;
} options;

enum { MODEL = 1, CSV };

static error_t parse(int key, char *argument, struct argp_state *state) {
  options *o = state->input;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; break;
  case MODEL: o->model = argument; break;
  case CSV: o->csv = true; break;
  case ARGP_KEY_ARGS:
    o->images = state->argv + state->next;
    o->count = state->argc - state->next;
    break;
  case ARGP_KEY_END:
    if (!o->model) argp_error(state, "--model is missing");
    if (!o->count) argp_error(state, "no picture is given");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

typedef struct answer {
  int64_t label;
  double probability;
} answer;

static int by_probability(const void *a, const void *b) {
  const answer *x = a, *y = b;
  if (x->probability != y->probability) return x->probability < y->probability ? 1 : -1;
  return x->label < y->label ? -1 : 1;
}

static const char *class_name(const comba_model *model, int64_t index, char buffer[32]) {
  const char *name = comba_config_class_name(model->config, index);
  if (name) return name;
  snprintf(buffer, 32, "%lld", (long long)index);
  return buffer;
}

/* A field of a comma-separated file, quoted where it must be. */
static void print_field(const char *text) {
  if (!strpbrk(text, ",\"\r\n")) {
    fputs(text, stdout);
    return;
  }
  putchar('"');
  for (; *text; text++) {
    if (*text == '"') putchar('"');
    putchar(*text);
  }
  putchar('"');
}

static void print_answers(const options *o, const comba_model *model, const char *image, const answer *answers,
                          int64_t count, json_t *list) {
  char buffer[32];
  if (list) {
    json_t *classes = json_array(), *path = json_string(image);
    for (int64_t i = 0; i < count; i++)
      json_array_append_new(classes, json_pack("{s:s, s:f}", "class", class_name(model, answers[i].label, buffer),
                                               "probability", answers[i].probability));
    json_t *entry = json_object();
    json_object_set_new(entry, "image", path ? path : json_null()); /* a path that is not UTF-8 has no JSON form */
    json_object_set_new(entry, "predictions", classes);
    json_array_append_new(list, entry);
  } else if (o->csv) {
    print_field(image);
    for (int64_t i = 0; i < count; i++) {
      putchar(',');
      print_field(class_name(model, answers[i].label, buffer));
      printf(",%.6f", answers[i].probability);
    }
    putchar('\n');
  } else {
    printf("%s\n", image);
    for (int64_t i = 0; i < count; i++)
      printf("  %6.2f %%  %s\n", 100 * answers[i].probability, class_name(model, answers[i].label, buffer));
  }
}

/* `code` becomes the exit code of the first picture that could not be read; the others are still answered. */
static comba_status run(const options *o, const char *command, int *code) {
  const comba_options library = comba_common_apply(&o->common);
  comba_model *model = NULL;
  comba_preprocess preprocess;
  comba_model_info info;
  char *path = NULL;
  float *pixels = NULL;
  answer *answers = NULL;
  json_t *list = o->common.json ? json_array() : NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(vision_load(&model, o->model, &library));
  comba_model_describe(model, &info);
  COMBA_TRY(comba_path_join(&path, o->model, "preprocessor_config.json"));
  COMBA_TRY(comba_preprocess_read(&preprocess, path));
  if (preprocess.size != info.image_size || preprocess.channels != info.num_channels)
    COMBA_TRY(comba_fail(
        COMBA_ERROR_FORMAT, "%s: size %lld and %d channels, expected those of config.json: %lld and %lld", path,
        (long long)preprocess.size, preprocess.channels, (long long)info.image_size, (long long)info.num_channels));
  pixels =
      comba_allocate((size_t)(info.num_channels * info.image_size * info.image_size) * sizeof *pixels, "a picture");
  answers = comba_allocate((size_t)info.num_classes * sizeof *answers, "the classes");
  if (!pixels || !answers) COMBA_TRY(COMBA_ERROR_MEMORY);
  const int64_t shown = info.num_classes < TOP ? info.num_classes : TOP;
  if (o->csv) {
    printf("image");
    for (int64_t i = 1; i <= shown; i++) printf(",class_%lld,probability_%lld", (long long)i, (long long)i);
    putchar('\n');
  }
  for (int i = 0; i < o->count; i++) {
    const comba_status readable = comba_preprocess_picture(&preprocess, o->images[i], pixels);
    if (readable != COMBA_OK) {
      const int failure = comba_report_failure(command, readable);
      if (!*code) *code = failure;
      continue;
    }
    const comba_batch batch = {.batch = 1, .pixel_values = pixels};
    COMBA_TRY(comba_model_forward(model, &batch, COMBA_PASS_EVALUATE, NULL));
    const float *logits = comba_model_logits(model);
    double largest = logits[0], total = 0;
    for (int64_t c = 1; c < info.num_classes; c++) largest = fmax(largest, logits[c]);
    for (int64_t c = 0; c < info.num_classes; c++) total += exp(logits[c] - largest);
    if (!isfinite(total))
      COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT, "%s: the model gives logits that are not finite; its training diverged",
                           o->model));
    for (int64_t c = 0; c < info.num_classes; c++) answers[c] = (answer){c, exp(logits[c] - largest) / total};
    qsort(answers, (size_t)info.num_classes, sizeof *answers, by_probability);
    print_answers(o, model, o->images[i], answers, shown, list);
  }
  if (list) {
    json_dumpf(list, stdout, JSON_COMPACT | JSON_REAL_PRECISION(7));
    putchar('\n');
  }
cleanup:
  json_decref(list);
  free(answers);
  free(pixels);
  free(path);
  comba_model_free(model);
  return status;
}

static const struct argp_option list[] = {
    {"model", MODEL, "DIR", 0, "Folder with config.json, model.safetensors and preprocessor_config.json", 0},
    {"csv", CSV, 0, 0, "One line a picture: path, then class and probability of the five best", 0},
    {0}};
static const struct argp_child children[] = {{&comba_common_argp, 0, 0, 0}, {0}};
const struct argp vision_predict_argp = {
    list, parse, "IMAGE...", "The five most probable classes of each picture (PNG or JPEG).", children, 0, 0};

int vision_predict(int argc, char **argv) {
  options o = {.common = comba_common_defaults()};
  comba_options_parse(&vision_predict_argp, argc, argv, &o);
  int code = 0;
  const comba_status status = run(&o, argv[0], &code);
  return status == COMBA_OK ? code : comba_report_failure(argv[0], status);
}
