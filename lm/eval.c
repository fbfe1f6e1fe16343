#include "lm.h"

#include <stdio.h>

#include "evaluate.h"
#include "core/status.h"
#include "core/graph.h"
#include "program/describe.h"

enum { MAX_FILES = 4096 };

typedef struct options {
  comba_common_options common;
  const char *model, *data[MAX_FILES];
  int64_t files, batch, length;
  bool profile;
} options;

enum { MODEL = 1, DATA, BATCH, LENGTH, PROFILE };

static error_t parse(int key, char *argument, struct argp_state *state) {
  options *o = state->input;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; break;
  case MODEL: o->model = argument; break;
  case DATA:
  case ARGP_KEY_ARG:
    if (o->files == MAX_FILES) argp_error(state, "more than %d data files", MAX_FILES);
    o->data[o->files++] = argument;
    break;
  case BATCH: o->batch = comba_option_integer(state, "--batch-size", argument, 1, 1 << 20); break;
  case LENGTH: o->length = comba_option_integer(state, "--sequence-length", argument, 1, 1 << 24); break;
  case PROFILE: o->profile = true; break;
  case ARGP_KEY_END:
    if (!o->model || !o->files) argp_error(state, "--model and --data are needed");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

static comba_status run(const options *o) {
  const comba_options library = comba_common_apply(&o->common);
  comba_model *model = NULL;
  comba_tokens *tokens = NULL;
  comba_model_info info;
  json_t *result = json_object();
  comba_status status = COMBA_OK;
  COMBA_TRY(lm_load(&model, o->model, &library));
  comba_model_describe(model, &info);
  COMBA_TRY(comba_tokens_open(&tokens, o->data, o->files, info.vocab_size));
  COMBA_TRY(comba_tokens_check_length(tokens, o->length, false));
  comba_profile_enable(o->profile);
  COMBA_TRY(lm_evaluate(model, tokens, o->batch, o->length, o->common.quiet || o->common.json, result));
  if (o->common.json) {
    json_dumpf(result, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
  } else {
    printf("loss        %.5f nats a token\nperplexity  %.4f\n", json_number_value(json_object_get(result, "loss")),
           json_number_value(json_object_get(result, "perplexity")));
    if (comba_tokens_are_bytes(tokens))
      printf("bits/byte   %.5f\n", json_number_value(json_object_get(result, "bits_per_byte")));
    printf("accuracy    %.2f %%\ntokens      %lld\n", 100 * json_number_value(json_object_get(result, "accuracy")),
           (long long)json_integer_value(json_object_get(result, "tokens")));
  }
  if (o->profile) comba_describe_profile();
cleanup:
  json_decref(result);
  comba_tokens_free(tokens);
  comba_model_free(model);
  return status;
}

static const struct argp_option list[] = {
    {"model", MODEL, "DIR", 0, "Folder with config.json and model.safetensors", 0},
    {"data", DATA, "FILE", 0,
     "Any file as bytes, or a token file; of examples the marked tokens count; may be given several times", 0},
    {"batch-size", BATCH, "N", 0, "Windows at a time (default 16)", 0},
    {"sequence-length", LENGTH, "N", 0, "Tokens a window; the state is reset at each (default 256)", 0},
    {"profile", PROFILE, 0, 0, "Print the time of each operator", 0},
    {0}};
static const struct argp_child children[] = {{&comba_common_argp, 0, 0, 0}, {0}};
const struct argp lm_eval_argp = {
    list,
    parse,
    "[FILE...]",
    "Loss, perplexity, bits per byte and accuracy over non-overlapping windows, or over examples.",
    children,
    0,
    0};

int lm_eval(int argc, char **argv) {
  static options o; /* large */
  o = (options){.common = comba_common_defaults(), .batch = 16, .length = 256};
  comba_options_parse(&lm_eval_argp, argc, argv, &o);
  const comba_status status = run(&o);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
