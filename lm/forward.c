#include "lm.h"

#include <stdlib.h>

#include "core/status.h"
#include "program/forward.h"

typedef struct options {
  comba_common_options common;
  const char *model, *input, *output;
  bool gradients;
} options;

enum { MODEL = 1, INPUT, OUTPUT, GRADIENTS };

static error_t parse(int key, char *argument, struct argp_state *state) {
  options *o = state->input;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; break;
  case MODEL: o->model = argument; break;
  case INPUT: o->input = argument; break;
  case OUTPUT: o->output = argument; break;
  case GRADIENTS: o->gradients = true; break;
  case ARGP_KEY_END:
    if (!o->model || !o->input || !o->output) argp_error(state, "--model, --input and --output are needed");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

/* Labels are shifted inside, as everywhere in the ecosystem: the target of token t is label t + 1. */
static int32_t *shift_labels(const int32_t *labels, int64_t batch, int64_t length) {
  int32_t *targets = comba_allocate((size_t)(batch * length) * sizeof *targets, "targets");
  if (!targets) return NULL;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t t = 0; t < length; t++) targets[b * length + t] = t + 1 < length ? labels[b * length + t + 1] : -100;
  return targets;
}

static comba_status run(const options *o) {
  comba_model *model = NULL;
  comba_safetensors *file = NULL;
  const int64_t *shape = NULL, *label_shape = NULL;
  int32_t *ids = NULL, *labels = NULL, *targets = NULL;
  const comba_options library = comba_common_apply(&o->common);
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_safetensors_open(&file, o->input));
  COMBA_TRY(comba_forward_integers(file, "input_ids", 2, &shape, &ids));
  if (comba_safetensors_find(file, "labels")) {
    COMBA_TRY(comba_forward_integers(file, "labels", 2, &label_shape, &labels));
    if (label_shape[0] != shape[0] || label_shape[1] != shape[1])
      COMBA_TRY(comba_fail(
          COMBA_ERROR_FORMAT, "%s: tensor 'labels' has shape (%lld, %lld), expected that of input_ids (%lld, %lld)",
          o->input, (long long)label_shape[0], (long long)label_shape[1], (long long)shape[0], (long long)shape[1]));
    targets = shift_labels(labels, shape[0], shape[1]);
    if (!targets) COMBA_TRY(COMBA_ERROR_MEMORY);
  }
  COMBA_TRY(lm_load(&model, o->model, &library));
  const comba_batch batch = {.batch = shape[0], .length = shape[1], .input_ids = ids, .targets = targets};
  COMBA_TRY(comba_forward_write(model, &batch, true, o->gradients, o->output));
cleanup:
  comba_model_free(model);
  comba_safetensors_free(file);
  free(ids);
  free(labels);
  free(targets);
  return status;
}

int lm_forward(int argc, char **argv) {
  static const struct argp_option list[] = {
      {"model", MODEL, "DIR", 0, "Folder with config.json and model.safetensors", 0},
      {"input", INPUT, "FILE", 0,
       "safetensors with input_ids int32 or int64 (B,T), and labels (B,T) if they differ (-100 is ignored)", 0},
      {"output", OUTPUT, "FILE", 0, "safetensors to write: logits (B,T,V), loss (1), grad.NAME", 0},
      {"gradients", GRADIENTS, 0, 0, "Write the gradient of the loss for every weight", 0},
      {0}};
  static const struct argp_child children[] = {{&comba_common_argp, 0, 0, 0}, {0}};
  const struct argp argp = {list, parse, 0, "Run one batch through a model.", children, 0, 0};
  options o = {.common = comba_common_defaults()};
  comba_options_parse(&argp, argc, argv, &o);
  const comba_status status = run(&o);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
