#include "vision.h"

#include <stdlib.h>

#include "core/status.h"
#include "program/forward.h"

static comba_status run(const comba_forward_options *o) {
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
  COMBA_TRY(comba_forward_write(model, &batch, labels != NULL, o));
cleanup:
  comba_model_free(model);
  comba_safetensors_free(file);
  free(pixels);
  free(labels);
  return status;
}

const struct argp vision_forward_argp = {.children = comba_forward_children,
                                         .doc = "Run one batch through a model. The input holds pixel_values float32 "
                                                "(B,C,H,W), already normalised, and optional labels "
                                                "(B); the output gets logits (B,classes), loss (1), grad.NAME."};

int vision_forward(int argc, char **argv) {
  return comba_forward_run(argc, argv, &vision_forward_argp, run);
}
