#include "lm.h"

#include <stdio.h>
#include <stdlib.h>

#include "evaluate.h"
#include "core/graph.h"
#include "core/status.h"
#include "program/describe.h"

enum { MAX_FILES = 4096 };

typedef struct options {
  comba_common_options common;
  comba_memory_options memory;
  comba_training_options training;
  const char *config, *preset, *data[MAX_FILES], *validation;
  int64_t files, length;
  bool profile;
} options;

enum { CONFIG = 1, PRESET, DATA, VALIDATION, LENGTH, PROFILE };

static error_t parse(int key, char *argument, struct argp_state *state) {
  options *o = state->input;
  switch (key) {
  case ARGP_KEY_INIT:
    state->child_inputs[0] = &o->training;
    state->child_inputs[1] = &o->memory;
    state->child_inputs[2] = &o->common;
    break;
  case CONFIG: o->config = argument; break;
  case PRESET: o->preset = argument; break;
  case DATA:
  case ARGP_KEY_ARG: /* --data a.txt b.txt */
    if (o->files == MAX_FILES) argp_error(state, "more than %d data files", MAX_FILES);
    o->data[o->files++] = argument;
    break;
  case VALIDATION: o->validation = argument; break;
  case LENGTH: o->length = comba_option_integer(state, "--sequence-length", argument, 1, 1 << 24); break;
  case PROFILE: o->profile = true; break;
  case ARGP_KEY_END:
    if (!o->files) argp_error(state, "--data is missing: one or more files to train on");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

typedef struct session {
  const options *options;
  comba_model *model;
  comba_tokens *data, *validation;
  int32_t *input, *target;
} session;

static comba_status next(void *context, int64_t index, comba_batch *batch) {
  session *s = context;
  const int64_t rows = s->options->training.batch_size, length = s->options->length;
  *batch = (comba_batch){.batch = rows, .length = length, .input_ids = s->input, .targets = s->target};
  return comba_tokens_batch(s->data, s->options->common.seed, index, rows, length, s->input, s->target);
}

static comba_status evaluate(void *context, json_t *result, double *score) {
  session *s = context;
  const comba_status status = lm_evaluate(s->model, s->validation, s->options->training.batch_size, s->options->length,
                                          s->options->common.quiet, result);
  *score = -json_number_value(json_object_get(result, "loss"));
  return status;
}

static json_t *run_settings(const session *s) {
  char data[32], validation[32];
  snprintf(data, sizeof data, "%016llx", (unsigned long long)comba_tokens_fingerprint(s->data));
  snprintf(validation, sizeof validation, "%016llx",
           s->validation ? (unsigned long long)comba_tokens_fingerprint(s->validation) : 0);
  json_t *config = json_loads(comba_model_config(s->model), 0, NULL);
  return json_pack("{s:s, s:s, s:s, s:I, s:o}", "program", "comba-lm", "data", data, "validation_data", validation,
                   "sequence_length", (json_int_t)s->options->length, "config", config);
}

static comba_status complete(options *o, const comba_preset *preset) {
  if (preset) {
    comba_training_merge(&o->training, &preset->training);
    if (!o->length) o->length = preset->sequence_length;
  }
  if (!o->length) o->length = 256;
  return comba_training_complete(&o->training);
}

static comba_status run(options *o) {
  comba_options library = comba_common_apply(&o->common);
  comba_memory_apply(&o->memory, &library);
  session s = {.options = o};
  comba_model_info info;
  comba_training_result result = {0};
  char *text = NULL;
  const char *source = o->config ? o->config : o->preset;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_preset_config(lm_presets, o->preset, o->config, &text));
  COMBA_TRY(comba_run_folder_check(o->training.output, o->training.resume));
  COMBA_TRY(complete(o, o->preset ? comba_preset_find(lm_presets, o->preset) : NULL));
  COMBA_TRY(comba_config_warn(text, source));
  COMBA_TRY(comba_config_create(&s.model, text, source, &library));
  comba_model_describe(s.model, &info);
  if (info.kind != COMBA_KIND_LANGUAGE)
    COMBA_TRY(
        comba_fail(COMBA_ERROR_ARGUMENT, "%s: model_type is '%s', expected a language model", source, info.model_type));
  COMBA_TRY(comba_tokens_open(&s.data, o->data, o->files, info.vocab_size));
  COMBA_TRY(comba_tokens_check_length(s.data, o->length, true));
  if (o->validation) {
    COMBA_TRY(comba_tokens_open(&s.validation, &o->validation, 1, info.vocab_size));
    COMBA_TRY(comba_tokens_check_length(s.validation, o->length, false));
  }
  const size_t tokens = (size_t)(o->training.batch_size * o->length);
  s.input = comba_allocate(tokens * sizeof *s.input, "input tokens");
  s.target = comba_allocate(tokens * sizeof *s.target, "target tokens");
  if (!s.input || !s.target) COMBA_TRY(COMBA_ERROR_MEMORY);

  comba_training training = {
      .model = s.model,
      .common = &o->common,
      .options = o->training,
      .unit = "tokens",
      .units_per_step = o->training.batch_size * o->training.gradient_accumulation * o->length,
      .length = o->length,
      .settings = run_settings(&s),
      .context = &s,
      .next = next,
      .evaluate = s.validation ? evaluate : NULL,
  };
  if (!o->common.quiet)
    fprintf(stderr, "%s: %lld parameters, %lld tokens of data, %lld steps of %lld tokens\n", info.model_type,
            (long long)info.parameters, (long long)comba_tokens_count(s.data), (long long)o->training.steps,
            (long long)training.units_per_step);
  comba_profile_enable(o->profile);
  COMBA_TRY(comba_train(&training, &result));
  comba_training_report(&training, &result);
  const json_t *loss = json_object_get(result.evaluation, "loss");
  if (loss && !o->common.json) printf("validation loss %.5f nats a token\n", json_number_value(loss));
  if (o->profile) comba_describe_profile();
cleanup:
  comba_training_result_release(&result);
  comba_tokens_free(s.data);
  comba_tokens_free(s.validation);
  comba_model_free(s.model);
  free(s.input);
  free(s.target);
  free(text);
  return status;
}

static const struct argp_option list[] = {
    {0, 0, 0, 0, "Model and data:", 10},
    {"config", CONFIG, "FILE", 0, "config.json of the model to build", 0},
    {"preset", PRESET, "NAME", 0, "Built-in model and recipe ('comba-lm info --presets')", 0},
    {"data", DATA, "FILE...", 0, "Files to train on: any file as bytes (vocab_size 256), or token files", 0},
    {"validation-data", VALIDATION, "FILE", 0, "Held-out file; its loss decides which weights go to best/", 0},
    {"sequence-length", LENGTH, "N", 0, "Tokens a sequence (default 256)", 0},
    {"profile", PROFILE, 0, 0, "Print the time of each operator at the end", 0},
    {0}};
static const struct argp_child children[] = {
    {&comba_training_argp, 0, 0, 0}, {&comba_memory_argp, 0, 0, 0}, {&comba_common_argp, 0, 0, 0}, {0}};
const struct argp lm_train_argp = {
    list,
    parse,
    "[FILE...]",
    "Train a language model. The output folder gets config.json, model.safetensors, checkpoints, "
    "log.jsonl and curves.svg; Ctrl-C ends in order, and --resume goes on.",
    children,
    0,
    0};

int lm_train(int argc, char **argv) {
  static options o; /* large */
  o = (options){.common = comba_common_defaults(), .training = comba_training_unset()};
  comba_options_parse(&lm_train_argp, argc, argv, &o);
  const comba_status status = run(&o);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
