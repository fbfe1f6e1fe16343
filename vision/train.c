#include "vision.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/graph.h"
#include "core/parallel.h"
#include "data/loader.h"
#include "evaluate.h"
#include "model/json.h"
#include "model/model_private.h"
#include "program/describe.h"

typedef struct options {
  comba_common_options common;
  comba_memory_options memory;
  comba_training_options training;
  const char *config, *preset, *data;
  double epochs, validation_fraction, label_smoothing, max_bad_fraction;
  int fit, class_weights, flip;
  int64_t crop_padding;
  bool profile;
} options;

enum {
  CONFIG = 1,
  PRESET,
  DATA,
  EPOCHS,
  VALIDATION_FRACTION,
  LABEL_SMOOTHING,
  FIT,
  CLASS_WEIGHTS,
  MAX_BAD_FRACTION,
  CROP_PADDING,
  FLIP,
  PROFILE
};

enum { WEIGHTS_NONE, WEIGHTS_BALANCED };

static error_t parse(int key, char *argument, struct argp_state *state) {
  static const char *const fits[] = {"crop", "pad", "stretch", NULL}; /* order of comba_fit */
  static const char *const weights[] = {"none", "balanced", NULL};
  static const char *const flips[] = {"no", "yes", NULL};
  options *o = state->input;
  switch (key) {
  case ARGP_KEY_INIT:
    state->child_inputs[0] = &o->training;
    state->child_inputs[1] = &o->memory;
    state->child_inputs[2] = &o->common;
    break;
  case CONFIG: o->config = argument; break;
  case PRESET: o->preset = argument; break;
  case DATA: o->data = argument; break;
  case EPOCHS: o->epochs = comba_option_number(state, "--epochs", argument, 1e-6, 1e6); break;
  case VALIDATION_FRACTION:
    o->validation_fraction = comba_option_number(state, "--validation-fraction", argument, 0, 0.99);
    break;
  case LABEL_SMOOTHING: o->label_smoothing = comba_option_number(state, "--label-smoothing", argument, 0, 0.99); break;
  case FIT: o->fit = comba_option_choice(state, "--fit", argument, fits); break;
  case CLASS_WEIGHTS: o->class_weights = comba_option_choice(state, "--class-weights", argument, weights); break;
  case MAX_BAD_FRACTION: o->max_bad_fraction = comba_option_number(state, "--max-bad-fraction", argument, 0, 1); break;
  case CROP_PADDING: o->crop_padding = comba_option_integer(state, "--crop-padding", argument, 0, 4096); break;
  case FLIP: o->flip = comba_option_choice(state, "--flip", argument, flips); break;
  case PROFILE: o->profile = true; break;
  case ARGP_KEY_END:
    if (!o->data) argp_error(state, "--data is missing: the folder with the pictures");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

typedef struct session {
  options *options;
  comba_model *model;
  comba_dataset *dataset;
  comba_preprocess preprocess;
  comba_augment augment;
  comba_loader *loader;
  comba_loader_batch loaded;
  int64_t next_index; /* of the micro-batch that the loader gives next, -1 before the first */
  int64_t batches;    /* micro-batches an epoch */
  bool own_split;     /* validation rows were taken from the training split: split.tsv tells which */
} session;

static comba_loader_options loading(const session *s, int64_t index) {
  return (comba_loader_options){
      .dataset = s->dataset,
      .split = COMBA_SPLIT_TRAIN,
      .side = s->preprocess.size,
      .channels = s->preprocess.channels,
      .normalization = comba_preprocess_normalization(&s->preprocess),
      .augment = &s->augment,
      .batch_size = s->options->training.batch_size,
      .shuffle = true,
      .seed = s->options->common.seed,
      .drop_short = true,
      .first_epoch = s->batches ? index / s->batches : 0,
      .first_batch = s->batches ? index % s->batches : 0,
      .threads = comba_threads(),
      .depth = 4,
  };
}

static comba_status next(void *context, int64_t index, comba_batch *batch) {
  session *s = context;
  comba_status status = COMBA_OK;
  if (index != s->next_index) { /* the start of a run, resumed or not */
    const comba_loader_options options = loading(s, index);
    comba_loader_free(s->loader);
    s->loader = NULL;
    COMBA_TRY(comba_loader_create(&s->loader, &options));
  }
  COMBA_TRY(comba_loader_next(s->loader, &s->loaded));
  s->next_index = index + 1;
  *batch = (comba_batch){
      .batch = s->options->training.batch_size, .pictures = &s->loaded.pictures, .labels = s->loaded.labels};
cleanup:
  return status;
}

static comba_status evaluate(void *context, json_t *result, double *score) {
  session *s = context;
  vision_evaluation evaluation;
  const vision_evaluation_options options = {
      .dataset = s->dataset,
      .split = comba_dataset_held_out(s->dataset),
      .preprocess = &s->preprocess,
      .batch_size = s->options->training.batch_size,
      .threads = comba_threads(),
      .quiet = s->options->common.quiet,
  };
  comba_status status = vision_evaluate(s->model, &options, &evaluation);
  if (status != COMBA_OK) return status;
  *score = vision_accuracy(&evaluation);
  status = vision_evaluation_json(&evaluation, result);
  vision_evaluation_release(&evaluation);
  return status;
}

/* What prediction and evaluation need beside the weights. */
static comba_status save(void *context, const char *folder) {
  const session *s = context;
  char *preprocess = NULL, *split = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_path_join(&preprocess, folder, "preprocessor_config.json"));
  COMBA_TRY(comba_preprocess_write(&s->preprocess, preprocess));
  if (s->own_split) {
    COMBA_TRY(comba_path_join(&split, folder, "split.tsv"));
    COMBA_TRY(comba_dataset_write_split(s->dataset, split));
  }
cleanup:
  free(preprocess);
  free(split);
  return status;
}

/* skipped.tsv: path and reason of each picture that could not be read. */
static comba_status begin(void *context, const char *folder) {
  const session *s = context;
  const int64_t count = comba_dataset_skipped(s->dataset);
  if (!count) return COMBA_OK;
  char *text = NULL, *path = NULL;
  size_t size = 0;
  comba_status status = COMBA_OK;
  FILE *file = open_memstream(&text, &size);
  if (!file) return comba_fail_memory(0, "skipped.tsv");
  for (int64_t i = 0; i < count; i++) {
    const char *picture, *reason;
    comba_dataset_skipped_entry(s->dataset, i, &picture, &reason);
    fprintf(file, "%s\t%s\n", picture, reason);
    if (!s->options->common.quiet && i < 10) fprintf(stderr, "skipped: %s\n", reason);
  }
  if (fclose(file)) COMBA_TRY(comba_fail_memory(0, "skipped.tsv"));
  if (!s->options->common.quiet)
    fprintf(stderr, "%lld pictures could not be read; skipped.tsv lists them\n", (long long)count);
  COMBA_TRY(comba_path_join(&path, folder, "skipped.tsv"));
  COMBA_TRY(comba_file_write(path, text, size));
cleanup:
  free(path);
  free(text);
  return status;
}

/* The config with what the data decides: classes and their names, and channels where the config does not say. */
static comba_status complete_config(const session *s, const char *text, const char *source, char **out) {
  const int64_t classes = comba_dataset_classes(s->dataset);
  comba_status status = COMBA_OK;
  json_t *config = NULL, *names = NULL, *labels = NULL;
  COMBA_TRY(comba_json_parse(&config, text, strlen(text), source)); /* an object: it was parsed as a config before */
  const json_t *wanted = json_object_get(config, "num_classes");
  if (wanted && json_integer_value(wanted) != classes)
    COMBA_TRY(comba_fail(COMBA_ERROR_ARGUMENT, "%s: num_classes is %lld, but %s has %lld classes", source,
                         (long long)json_integer_value(wanted), s->options->data, (long long)classes));
  names = json_object();
  labels = json_object();
  for (int64_t i = 0; i < classes; i++) {
    char number[32];
    snprintf(number, sizeof number, "%lld", (long long)i);
    json_object_set_new(names, number, json_string(comba_dataset_class_name(s->dataset, i)));
    json_object_set_new(labels, comba_dataset_class_name(s->dataset, i), json_integer(i));
  }
  json_object_set_new(config, "num_classes", json_integer(classes));
  json_object_set(config, "id2label", names);
  json_object_set(config, "label2id", labels);
  if (!json_object_get(config, "num_channels"))
    json_object_set_new(config, "num_channels", json_integer(comba_dataset_channels(s->dataset)));
  *out = json_dumps(config, 0);
  if (!*out) status = comba_fail_memory(0, "a config");
cleanup:
  json_decref(names);
  json_decref(labels);
  json_decref(config);
  return status;
}

/* Takes validation rows from the training split if asked to, or if the data has no held-out pictures of its own; a resumed run
 * finds the same rows again from the seed. */
static comba_status split_data(session *s) {
  double fraction = s->options->validation_fraction;
  const bool held_out = comba_dataset_count(s->dataset, comba_dataset_held_out(s->dataset)) > 0;
  if (fraction < 0) fraction = held_out ? 0 : 0.1;
  s->options->validation_fraction = fraction;
  if (fraction == 0) return COMBA_OK;
  s->own_split = true;
  return comba_dataset_split(s->dataset, fraction, s->options->common.seed);
}

static comba_status prepare_data(session *s) {
  comba_model_info info;
  comba_model_describe(s->model, &info);
  comba_prepare_options prepare;
  comba_prepare_options_default(&prepare, s->dataset);
  prepare.side = info.image_size;
  prepare.channels = (int)info.num_channels;
  prepare.fit = (comba_fit)s->options->fit;
  prepare.training = true;
  prepare.max_bad_fraction = s->options->max_bad_fraction;
  prepare.threads = comba_threads();
  comba_status status = comba_dataset_prepare(s->dataset, &prepare);
  if (status != COMBA_OK) return status;
  s->preprocess =
      (comba_preprocess){.size = info.image_size, .channels = prepare.channels, .fit = prepare.fit, .normalize = true};
  return comba_dataset_statistics(s->dataset, COMBA_SPLIT_TRAIN, s->preprocess.mean, s->preprocess.std);
}

/* Weight of a class in the loss: pictures / (classes * pictures of the class). */
static comba_status weigh_classes(const session *s) {
  const int64_t classes = comba_dataset_classes(s->dataset), count = comba_dataset_count(s->dataset, COMBA_SPLIT_TRAIN);
  if (s->options->class_weights == WEIGHTS_NONE) return COMBA_OK;
  float *weights = comba_allocate((size_t)classes * sizeof *weights, "the class weights");
  int64_t *counts = comba_allocate((size_t)classes * sizeof *counts, "the class weights");
  comba_status status = weights && counts ? COMBA_OK : COMBA_ERROR_MEMORY;
  if (status == COMBA_OK) {
    for (int64_t i = 0; i < count; i++) counts[comba_dataset_label(s->dataset, COMBA_SPLIT_TRAIN, i)]++;
    for (int64_t c = 0; c < classes; c++)
      weights[c] = counts[c] ? (float)((double)count / ((double)classes * (double)counts[c])) : 0;
    status = comba_model_set_class_weights(s->model, weights);
  }
  free(weights);
  free(counts);
  return status;
}

static json_t *run_settings(const session *s) {
  const options *o = s->options;
  char data[32];
  snprintf(data, sizeof data, "%016llx", (unsigned long long)comba_dataset_fingerprint(s->dataset));
  json_t *config = json_loads(comba_model_config(s->model), 0, NULL);
  return json_pack("{s:s, s:s, s:f, s:f, s:s, s:i, s:I, s:i, s:f, s:o}", "program", "comba-vision", "data", data,
                   "validation_fraction", o->validation_fraction, "label_smoothing", o->label_smoothing, "fit",
                   comba_fit_name((comba_fit)o->fit), "class_weights", o->class_weights, "crop_padding",
                   (json_int_t)o->crop_padding, "flip", o->flip, "max_bad_fraction", o->max_bad_fraction, "config",
                   config);
}

/* Options that the command line leaves open: from the preset, then the defaults. */
static void take_preset(options *o, const comba_preset *preset) {
  if (preset) {
    comba_training_merge(&o->training, &preset->training);
    if (!o->epochs) o->epochs = preset->epochs;
    if (o->label_smoothing < 0) o->label_smoothing = preset->label_smoothing;
    if (o->crop_padding < 0) o->crop_padding = preset->crop_padding;
    if (o->flip < 0) o->flip = preset->flip;
  }
  if (!o->epochs) o->epochs = 20;
  if (o->label_smoothing < 0) o->label_smoothing = 0.1;
  if (o->crop_padding < 0) o->crop_padding = 4;
  if (o->flip < 0) o->flip = 1;
  if (o->training.batch_size == COMBA_UNSET) o->training.batch_size = 64;
  if (o->training.gradient_accumulation == COMBA_UNSET) o->training.gradient_accumulation = 1;
}

/* The number of steps follows from the epochs and the pictures that can be read. */
static comba_status count_steps(session *s) {
  comba_training_options *training = &s->options->training;
  const int64_t count = comba_dataset_count(s->dataset, COMBA_SPLIT_TRAIN);
  if (training->batch_size > count) training->batch_size = count;
  s->batches = count / training->batch_size;
  const double steps = s->options->epochs * (double)s->batches / (double)training->gradient_accumulation;
  if (training->steps == COMBA_UNSET) training->steps = steps >= 1 ? (int64_t)(steps + 0.5) : 1;
  return comba_training_complete(training);
}

static comba_status run(options *o) {
  comba_options library = comba_common_apply(&o->common);
  session s = {.options = o, .next_index = -1};
  comba_training_result result = {0};
  comba_model_info info;
  char *text = NULL, *config = NULL;
  const char *source = o->config ? o->config : o->preset;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_preset_config(vision_presets, o->preset, o->config, &text));
  COMBA_TRY(comba_config_warn(text, source));
  COMBA_TRY(comba_run_folder_check(o->training.output, o->training.resume));
  COMBA_TRY(comba_dataset_open(&s.dataset, o->data));
  COMBA_TRY(complete_config(&s, text, source, &config));
  COMBA_TRY(split_data(&s));
  take_preset(o, o->preset ? comba_preset_find(vision_presets, o->preset) : NULL);
  comba_memory_apply(&o->memory, &library);
  library.label_smoothing = (float)o->label_smoothing;
  COMBA_TRY(comba_config_create(&s.model, config, source, &library));
  comba_model_describe(s.model, &info);
  if (info.kind != COMBA_KIND_VISION)
    COMBA_TRY(comba_fail(COMBA_ERROR_ARGUMENT, "%s: model_type is '%s', expected one that ends in _vision", source,
                         info.model_type));
  COMBA_TRY(prepare_data(&s));
  COMBA_TRY(count_steps(&s));
  COMBA_TRY(weigh_classes(&s));
  s.augment = (comba_augment){.padding = (int)o->crop_padding, .flip = o->flip, .seed = o->common.seed};

  const bool validates = comba_dataset_count(s.dataset, comba_dataset_held_out(s.dataset)) > 0;
  comba_training training = {
      .model = s.model,
      .common = &o->common,
      .options = o->training,
      .unit = "images",
      .units_per_step = o->training.batch_size * o->training.gradient_accumulation,
      .settings = run_settings(&s),
      .context = &s,
      .next = next,
      .evaluate = validates ? evaluate : NULL,
      .save = save,
      .begin = begin,
  };
  if (!o->common.quiet)
    fprintf(stderr, "%s: %lld parameters, %lld classes, %lld pictures to train on, %lld held out, %lld steps of %lld\n",
            info.model_type, (long long)info.parameters, (long long)info.num_classes,
            (long long)comba_dataset_count(s.dataset, COMBA_SPLIT_TRAIN),
            (long long)comba_dataset_count(s.dataset, comba_dataset_held_out(s.dataset)), (long long)o->training.steps,
            (long long)training.units_per_step);
  comba_profile_enable(o->profile);
  COMBA_TRY(comba_train(&training, &result));
  comba_training_report(&training, &result);
  const json_t *accuracy = json_object_get(result.evaluation, "accuracy");
  if (accuracy && !o->common.json) printf("validation accuracy %.2f %%\n", 100 * json_number_value(accuracy));
  if (o->profile) comba_describe_profile();
cleanup:
  comba_training_result_release(&result);
  comba_loader_free(s.loader);
  comba_model_free(s.model);
  comba_dataset_free(s.dataset);
  free(config);
  free(text);
  return status;
}

static const struct argp_option list[] = {
    {0, 0, 0, 0, "Model and data:", 10},
    {"config", CONFIG, "FILE", 0, "config.json of the model to build; classes and channels come from the data", 0},
    {"preset", PRESET, "NAME", 0, "Built-in model and recipe ('comba-vision info --presets')", 0},
    {"data", DATA, "DIR", 0, "Folder of class folders (PNG, JPEG), of IDX files or of CIFAR binary batches", 0},
    {"epochs", EPOCHS, "X", 0, "Times through the training pictures (default 20)", 0},
    {"validation-fraction", VALIDATION_FRACTION, "X", 0,
     "Part of the training pictures to hold out, class by class (default 0.1 if the data has no val/ or test/, else "
     "0)",
     0},
    {"fit", FIT, "crop|pad|stretch", 0, "How pictures of other shapes become square (default crop)", 0},
    {"crop-padding", CROP_PADDING, "N", 0, "Random crops of pictures padded by N pixels, 0 for none (default 4)", 0},
    {"flip", FLIP, "yes|no", 0, "Mirror half of the pictures (default yes; a preset may say no)", 0},
    {"label-smoothing", LABEL_SMOOTHING, "X", 0, "Share of the target spread over all classes (default 0.1)", 0},
    {"class-weights", CLASS_WEIGHTS, "none|balanced", 0, "balanced: rare classes count more in the loss (default none)",
     0},
    {"max-bad-fraction", MAX_BAD_FRACTION, "X", 0,
     "Damaged pictures are skipped; more than this share, and more than 10, end the run (default 0.05)", 0},
    {"profile", PROFILE, 0, 0, "Print the time of each operator at the end", 0},
    {0}};
static const struct argp_child children[] = {
    {&comba_training_argp, 0, 0, 0}, {&comba_memory_argp, 0, 0, 0}, {&comba_common_argp, 0, 0, 0}, {0}};
const struct argp vision_train_argp = {
    list,
    parse,
    0,
    "Train an image classifier. The output folder gets config.json, model.safetensors, "
    "preprocessor_config.json, best/, checkpoints, log.jsonl and curves.svg; Ctrl-C ends in order, and "
    "--resume goes on.",
    children,
    0,
    0};

int vision_train(int argc, char **argv) {
  options o = {.common = comba_common_defaults(),
               .training = comba_training_unset(),
               .validation_fraction = COMBA_UNSET,
               .label_smoothing = COMBA_UNSET,
               .max_bad_fraction = 0.05,
               .flip = COMBA_UNSET,
               .crop_padding = COMBA_UNSET};
  comba_options_parse(&vision_train_argp, argc, argv, &o);
  const comba_status status = run(&o);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
