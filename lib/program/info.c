#include "program/info.h"

#include <stdio.h>
#include <stdlib.h>

#include "core/status.h"
#include "model/model_private.h"
#include "program/describe.h"

typedef struct options {
  comba_common_options common;
  comba_memory_options memory;
  const char *model, *config, *preset, *fields;
  bool mixers, presets;
  int64_t batch, length;
} options;

enum { MODEL = 1, CONFIG, PRESET, FIELDS, MIXERS, PRESETS, BATCH, LENGTH };

static error_t parse(int key, char *argument, struct argp_state *state) {
  options *o = state->input;
  switch (key) {
  case ARGP_KEY_INIT:
    state->child_inputs[0] = &o->memory;
    state->child_inputs[1] = &o->common;
    break;
  case MODEL: o->model = argument; break;
  case CONFIG: o->config = argument; break;
  case PRESET: o->preset = argument; break;
  case FIELDS: o->fields = argument; break;
  case MIXERS: o->mixers = true; break;
  case PRESETS: o->presets = true; break;
  case BATCH: o->batch = comba_option_integer(state, "--batch-size", argument, 1, 1 << 20); break;
  case LENGTH: o->length = comba_option_integer(state, "--sequence-length", argument, 1, 1 << 24); break;
  case ARGP_KEY_END:
    if (!!o->model + !!o->config + !!o->preset + !!o->fields + o->mixers + o->presets != 1)
      argp_error(state, "one of --model, --config, --preset, --fields, --mixers and --presets is needed");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

typedef comba_status (*loader)(comba_model **, const char *, const comba_options *);

static comba_status describe(const options *o, const comba_preset *presets, loader load) {
  comba_options library = comba_common_apply(&o->common);
  comba_memory_apply(&o->memory, &library);
  comba_model *model = NULL;
  char *text = NULL;
  comba_status status = COMBA_OK;
  if (o->model) {
    COMBA_TRY(load(&model, o->model, &library));
  } else {
    COMBA_TRY(comba_preset_config(presets, o->preset, o->config, &text));
    const char *source = o->config ? o->config : o->preset;
    COMBA_TRY(comba_config_warn(text, source));
    COMBA_TRY(comba_model_plan(&model, text, &library));
  }
  COMBA_TRY(comba_describe_model(model, o->batch, o->length, o->common.json));
cleanup:
  comba_model_free(model);
  free(text);
  return status;
}

static const struct argp_option list[] = {
    {"model", MODEL, "DIR", 0, "Describe a trained model", 0},
    {"config", CONFIG, "FILE", 0, "Describe what a config.json would build", 0},
    {"preset", PRESET, "NAME", 0, "Describe a preset and print its config", 0},
    {"presets", PRESETS, 0, 0, "List the presets", 0},
    {"mixers", MIXERS, 0, 0, "List the mixers: recurrence, state, FLOPs, source", 0},
    {"fields", FIELDS, "MODEL_TYPE", 0, "List the config fields of a model type, with defaults", 0},
    {"batch-size", BATCH, "N", 0, "For the memory plan (default 1)", 0},
    {"sequence-length", LENGTH, "N", 0, "For the memory plan of a language model (default 256)", 0},
    {0}};
static const struct argp_child children[] = {{&comba_memory_argp, 0, 0, 0}, {&comba_common_argp, 0, 0, 0}, {0}};
const struct argp comba_info_argp = {list, parse, 0, "Describe a model, a preset, or the mixers.", children, 0, 0};

int comba_info_run(int argc, char **argv, const comba_preset *presets, loader load) {
  options o = {.common = comba_common_defaults(), .batch = 1, .length = 256};
  comba_options_parse(&comba_info_argp, argc, argv, &o);
  comba_status status = COMBA_OK;
  if (o.presets)
    comba_preset_list(presets);
  else if (o.mixers)
    status = comba_describe_mixers(o.common.json);
  else if (o.fields)
    status = comba_describe_fields(o.fields);
  else
    status = describe(&o, presets, load);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
