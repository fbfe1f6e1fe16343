#include "vision.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/graph.h"
#include "core/parallel.h"
#include "evaluate.h"
#include "model/model_private.h"
#include "program/describe.h"
#include "program/figures.h"

enum { WORST = 24 }; /* pictures on the sheet of mistakes */

typedef struct options {
  comba_common_options common;
  const char *model, *data, *figures;
  int64_t batch;
  int split; /* -1: the held-out one */
  bool skip_bad, profile;
} options;

enum { MODEL = 1, DATA, SPLIT, BATCH, SKIP_BAD, FIGURES, PROFILE };

static error_t parse(int key, char *argument, struct argp_state *state) {
  static const char *const splits[] = {"train", "validation", "test", "all", NULL}; /* order of comba_split */
  options *o = state->input;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; break;
  case MODEL: o->model = argument; break;
  case DATA: o->data = argument; break;
  case SPLIT: o->split = comba_option_choice(state, "--split", argument, splits); break;
  case BATCH: o->batch = comba_option_integer(state, "--batch-size", argument, 1, 1 << 20); break;
  case SKIP_BAD: o->skip_bad = true; break;
  case FIGURES: o->figures = argument; break;
  case PROFILE: o->profile = true; break;
  case ARGP_KEY_END:
    if (!o->model || !o->data) argp_error(state, "--model and --data are needed");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

typedef struct session {
  const options *options;
  comba_model *model;
  comba_dataset *dataset;
  comba_preprocess preprocess;
  comba_split split;
  const char **names; /* of the model's classes */
} session;

static comba_status name_classes(session *s) {
  const comba_config *config = s->model->config;
  s->names = comba_allocate((size_t)config->num_classes * sizeof *s->names, "the class names");
  if (!s->names) return COMBA_ERROR_MEMORY;
  for (int64_t i = 0; i < config->num_classes; i++) {
    s->names[i] = comba_config_class_name(config, i);
    if (!s->names[i]) return COMBA_OK; /* a model without names: classes are numbered as the data has them */
  }
  return comba_dataset_match_classes(s->dataset, s->names, config->num_classes);
}

/* The held-out pictures: the data's own, or, for the folder that the model was trained on, the rows that split.tsv names. */
static comba_status choose_split(session *s) {
  char *path = NULL;
  comba_status status = COMBA_OK;
  if (s->options->split == COMBA_SPLIT_ALL) {
    s->split = COMBA_SPLIT_ALL;
    return COMBA_OK;
  }
  COMBA_TRY(comba_path_join(&path, s->options->model, "split.tsv"));
  const bool has_own = comba_dataset_count(s->dataset, COMBA_SPLIT_VALIDATION) > 0;
  const bool split = !has_own && comba_path_exists(path) && comba_dataset_read_split(s->dataset, path) == COMBA_OK;
  s->split = s->options->split >= 0 ? (comba_split)s->options->split : comba_dataset_held_out(s->dataset);
  if (comba_dataset_count(s->dataset, s->split) > 0) {
    if (split && !s->options->common.quiet)
      fprintf(stderr, "evaluating the %s pictures of %s; --split all takes every picture\n", comba_split_name(s->split),
              path);
  } else if (s->options->split >= 0) {
    status = comba_fail(COMBA_ERROR_ARGUMENT, "%s: --split %s has no pictures", s->options->data,
                        comba_split_name(s->split));
  } else {
    s->split = COMBA_SPLIT_ALL; /* a folder that the model has not seen */
  }
cleanup:
  free(path);
  return status;
}

static comba_status open_session(session *s) {
  const options *o = s->options;
  const comba_options library = comba_common_apply(&o->common);
  comba_prepare_options prepare;
  char *path = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(vision_load(&s->model, o->model, &library));
  COMBA_TRY(comba_path_join(&path, o->model, "preprocessor_config.json"));
  COMBA_TRY(comba_preprocess_read(&s->preprocess, path));
  if (s->preprocess.size != s->model->config->image_size || s->preprocess.channels != s->model->config->num_channels)
    COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT,
                         "%s: size %lld and %d channels, expected those of config.json: %lld and %lld", path,
                         (long long)s->preprocess.size, s->preprocess.channels, (long long)s->model->config->image_size,
                         (long long)s->model->config->num_channels));
  COMBA_TRY(comba_dataset_open(&s->dataset, o->data));
  COMBA_TRY(name_classes(s));
  COMBA_TRY(choose_split(s));
  comba_prepare_options_default(&prepare, s->dataset);
  prepare.side = s->preprocess.size;
  prepare.channels = s->preprocess.channels;
  prepare.fit = s->preprocess.fit;
  prepare.split = s->split;
  prepare.skip_bad = o->skip_bad;
  prepare.max_bad_fraction = 1;
  prepare.threads = comba_threads();
  COMBA_TRY(comba_dataset_prepare(s->dataset, &prepare));
cleanup:
  free(path);
  return status;
}

static const char *class_name(const session *s, int64_t index) {
  return s->names[index] ? s->names[index] : comba_dataset_class_name(s->dataset, index);
}

static comba_status draw_figures(const session *s, const vision_evaluation *e) {
  const char **names = NULL;
  char *confusion = NULL, *mistakes = NULL;
  uint8_t *pixels = NULL;
  comba_figure_mistake *list = NULL;
  const int64_t side = s->preprocess.size, bytes = side * side * s->preprocess.channels;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_path_join(&confusion, s->options->figures, "confusion.png"));
  COMBA_TRY(comba_path_join(&mistakes, s->options->figures, "mistakes.png"));
  names = comba_allocate((size_t)e->classes * sizeof *names, "the class names");
  pixels = comba_allocate((size_t)(e->mistakes * bytes), "the pictures");
  list = comba_allocate((size_t)(e->mistakes + 1) * sizeof *list, "the mistakes");
  if (!names || !pixels || !list) COMBA_TRY(COMBA_ERROR_MEMORY);
  for (int64_t i = 0; i < e->classes; i++) names[i] = class_name(s, i);
  COMBA_TRY(comba_figure_confusion(confusion, names, e->classes, e->confusion));
  for (int64_t i = 0; i < e->mistakes; i++) {
    const vision_mistake *mistake = &e->mistake[i];
    COMBA_TRY(comba_dataset_load(s->dataset, s->split, mistake->picture, pixels + i * bytes));
    list[i] = (comba_figure_mistake){pixels + i * bytes, names[mistake->label], names[mistake->predicted],
                                     mistake->probability};
  }
  COMBA_TRY(comba_figure_mistakes(mistakes, list, e->mistakes, side, s->preprocess.channels));
  if (!s->options->common.json) printf("figures           %s, %s\n", confusion, mistakes);
cleanup:
  free(names);
  free(pixels);
  free(list);
  free(confusion);
  free(mistakes);
  return status;
}

static comba_status print_json(const session *s, const vision_evaluation *e) {
  json_t *object = json_object(), *matrix = json_array(), *recalls = json_object();
  comba_status status = vision_evaluation_json(e, object);
  for (int64_t label = 0; label < e->classes; label++) {
    json_t *row = json_array();
    for (int64_t c = 0; c < e->classes; c++)
      json_array_append_new(row, json_integer(e->confusion[label * e->classes + c]));
    json_array_append_new(matrix, row);
    const double recall = vision_recall(e, label);
    json_object_set_new(recalls, class_name(s, label), recall < 0 ? json_null() : json_real(recall));
  }
  json_object_set_new(object, "confusion", matrix);
  json_object_set_new(object, "recall", recalls);
  json_object_set_new(object, "split", json_string(comba_split_name(s->split)));
  json_object_set_new(object, "skipped", json_integer(comba_dataset_skipped(s->dataset)));
  json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
  putchar('\n');
  json_decref(object);
  return status;
}

static comba_status print_text(const session *s, const vision_evaluation *e) {
  json_t *figures = json_object();
  const comba_status status = vision_evaluation_json(e, figures);
#define PERCENT(key) (100 * json_number_value(json_object_get(figures, key)))
  printf("pictures          %lld (%s)\naccuracy          %.2f %%\ntop-5             %.2f %%\nloss              %.4f "
         "nats\n",
         (long long)e->pictures, comba_split_name(s->split), PERCENT("accuracy"), PERCENT("top5"), e->loss);
  printf("balanced accuracy %.2f %%\nmacro F1          %.2f %%\nmajority class    %.2f %%\n",
         PERCENT("balanced_accuracy"), PERCENT("macro_f1"), PERCENT("majority_rate"));
#undef PERCENT
  printf("\nrecall a class, and what else it was taken for most often\n");
  for (int64_t label = 0; label < e->classes; label++) {
    const double recall = vision_recall(e, label);
    int64_t other = -1;
    for (int64_t c = 0; c < e->classes; c++)
      if (c != label && (other < 0 || e->confusion[label * e->classes + c] > e->confusion[label * e->classes + other]))
        other = c;
    printf("  %-20s ", class_name(s, label));
    if (recall < 0)
      printf("no picture\n");
    else if (other >= 0 && e->confusion[label * e->classes + other])
      printf("%6.2f %%   %s (%lld)\n", 100 * recall, class_name(s, other),
             (long long)e->confusion[label * e->classes + other]);
    else
      printf("%6.2f %%\n", 100 * recall);
  }
  if (comba_dataset_skipped(s->dataset))
    printf("skipped           %lld damaged pictures\n", (long long)comba_dataset_skipped(s->dataset));
  json_decref(figures);
  return status;
}

static comba_status run(const options *o) {
  session s = {.options = o};
  vision_evaluation evaluation = {0};
  comba_status status = COMBA_OK;
  COMBA_TRY(open_session(&s));
  if (o->figures) COMBA_TRY(comba_folder_make(o->figures)); /* what cannot be written is known before the work */
  comba_profile_enable(o->profile);
  const vision_evaluation_options options = {
      .dataset = s.dataset,
      .split = s.split,
      .preprocess = &s.preprocess,
      .batch_size = o->batch,
      .mistakes = o->figures ? WORST : 0,
      .threads = comba_threads(),
      .quiet = o->common.quiet || o->common.json,
  };
  COMBA_TRY(vision_evaluate(s.model, &options, &evaluation));
  COMBA_TRY(o->common.json ? print_json(&s, &evaluation) : print_text(&s, &evaluation));
  if (o->figures) COMBA_TRY(draw_figures(&s, &evaluation));
  if (o->profile) comba_describe_profile();
cleanup:
  vision_evaluation_release(&evaluation);
  free(s.names);
  comba_dataset_free(s.dataset);
  comba_model_free(s.model);
  return status;
}

static const struct argp_option list[] = {
    {"model", MODEL, "DIR", 0, "Folder with config.json, model.safetensors and preprocessor_config.json", 0},
    {"data", DATA, "DIR", 0, "Folder of class folders, of IDX files or of CIFAR binary batches; classes match by name",
     0},
    {"split", SPLIT, "train|validation|test|all", 0,
     "Which pictures (default: the held-out ones; for the folder trained on, those of split.tsv)", 0},
    {"batch-size", BATCH, "N", 0, "Pictures at a time (default 64)", 0},
    {"skip-bad", SKIP_BAD, 0, 0, "Leave damaged pictures out instead of failing at the first", 0},
    {"figures", FIGURES, "DIR", 0, "Write confusion.png and mistakes.png (the worst mistakes) into this folder", 0},
    {"profile", PROFILE, 0, 0, "Print the time of each operator", 0},
    {0}};
static const struct argp_child children[] = {{&comba_common_argp, 0, 0, 0}, {0}};
const struct argp vision_eval_argp = {
    list, parse, 0, "Accuracy, top-5, loss and confusion matrix of a classifier on a data set.", children, 0, 0};

int vision_eval(int argc, char **argv) {
  options o = {.common = comba_common_defaults(), .batch = 64, .split = -1};
  comba_options_parse(&vision_eval_argp, argc, argv, &o);
  const comba_status status = run(&o);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
