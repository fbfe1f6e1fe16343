#include "vision.h"

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

static comba_status run(const options *o) {
  comba_model *model = NULL;
  comba_safetensors *file = NULL;
  const int64_t *shape = NULL, *label_shape = NULL;
  float *pixels = NULL;
  int32_t *labels = NULL;
  comba_model_info info;
  const comba_options library = comba_common_apply(&o->common);
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_safetensors_open(&file, o->input));
  COMBA_TRY(comba_forward_floats(file, "pixel_values", 4, &shape, &pixels));
  COMBA_TRY(vision_load(&model, o->model, &library));
  comba_model_describe(model, &info);
  if (shape[1] != info.num_channels || shape[2] != shape[3])
    COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT,
                         "%s: tensor 'pixel_values' has shape (%lld, %lld, %lld, %lld), expected (B, %lld, %lld, %lld)",
                         o->input, (long long)shape[0], (long long)shape[1], (long long)shape[2], (long long)shape[3],
                         (long long)info.num_channels, (long long)info.image_size, (long long)info.image_size));
  if (comba_safetensors_find(file, "labels")) {
    COMBA_TRY(comba_forward_integers(file, "labels", 1, &label_shape, &labels));
    if (label_shape[0] != shape[0])
      COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT,
                           "%s: tensor 'labels' has %lld values, expected one for each of %lld pictures", o->input,
                           (long long)label_shape[0], (long long)shape[0]));
  } else if (o->gradients) {
    COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT, "%s: tensor 'labels' is missing, and --gradients needs a loss", o->input));
  }
  const comba_batch batch = {.batch = shape[0], .pixel_values = pixels, .image_size = shape[2], .labels = labels};
  COMBA_TRY(comba_forward_write(model, &batch, labels != NULL, o->gradients, o->output));
cleanup:
  comba_model_free(model);
  comba_safetensors_free(file);
  free(pixels);
  free(labels);
  return status;
}

int vision_forward(int argc, char **argv) {
  static const struct argp_option list[] = {
      {"model", MODEL, "DIR", 0, "Folder with config.json and model.safetensors", 0},
      {"input", INPUT, "FILE", 0,
       "safetensors with pixel_values float32 (B,C,H,W), already normalised, and optional labels (B)", 0},
      {"output", OUTPUT, "FILE", 0, "safetensors to write: logits (B,classes), loss (1), grad.NAME", 0},
      {"gradients", GRADIENTS, 0, 0, "Write the gradient of the loss for every weight", 0},
      {0}};
  static const struct argp_child children[] = {{&comba_common_argp, 0, 0, 0}, {0}};
  const struct argp argp = {list, parse, 0, "Run one batch through a model.", children, 0, 0};
  options o = {.common = comba_common_defaults()};
  comba_options_parse(&argp, argc, argv, &o);
  const comba_status status = run(&o);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
