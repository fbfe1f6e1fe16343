#include "lm.h"

#include <stdlib.h>

#include "core/status.h"
#include "program/forward.h"

/* Labels are shifted inside, as everywhere in the ecosystem: the target of token t is label t + 1. */
static int32_t *shift_labels(const int32_t *labels, int64_t batch, int64_t length) {
  int32_t *targets = comba_allocate((size_t)(batch * length) * sizeof *targets, "targets");
  if (!targets) return NULL;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t t = 0; t < length; t++) targets[b * length + t] = t + 1 < length ? labels[b * length + t + 1] : -100;
  return targets;
}

static comba_status run(const comba_forward_options *o) {
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
  COMBA_TRY(comba_forward_write(model, &batch, true, o));
cleanup:
  comba_model_free(model);
  comba_safetensors_free(file);
  free(ids);
  free(labels);
  free(targets);
  return status;
}

const struct argp lm_forward_argp = {.children = comba_forward_children,
                                     .doc = "Run one batch through a model. The input holds input_ids int32 or int64 "
                                            "(B,T), and labels (B,T) if they differ (-100 is "
                                            "ignored); the output gets logits (B,T,V), loss (1), grad.NAME."};

int lm_forward(int argc, char **argv) {
  return comba_forward_run(argc, argv, &lm_forward_argp, run);
}
