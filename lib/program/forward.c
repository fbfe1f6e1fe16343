#include "program/forward.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/build.h"

static comba_status get(const comba_safetensors *file, const char *name, int rank, const comba_stored_tensor **tensor) {
  const comba_status status = comba_safetensors_get(file, name, tensor);
  if (status != COMBA_OK) return status;
  if ((*tensor)->rank != rank)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has rank %d, expected %d", (*tensor)->path, name,
                      (*tensor)->rank, rank);
  for (int i = 0; i < rank; i++)
    if ((*tensor)->shape[i] < 1)
      return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has size 0 in dimension %d", (*tensor)->path, name, i);
  return COMBA_OK;
}

comba_status comba_forward_integers(const comba_safetensors *file, const char *name, int rank, const int64_t **shape,
                                    int32_t **values) {
  const comba_stored_tensor *tensor = NULL;
  comba_status status = get(file, name, rank, &tensor);
  if (status != COMBA_OK) return status;
  int32_t *buffer = comba_allocate((size_t)tensor->elements * sizeof *buffer, name);
  if (!buffer) return COMBA_ERROR_MEMORY;
  status = comba_stored_tensor_integers(tensor, buffer);
  if (status != COMBA_OK) {
    free(buffer);
    return status;
  }
  *shape = tensor->shape;
  *values = buffer;
  return COMBA_OK;
}

comba_status comba_forward_floats(const comba_safetensors *file, const char *name, int rank, const int64_t **shape,
                                  float **values) {
  const comba_stored_tensor *tensor = NULL;
  comba_status status = get(file, name, rank, &tensor);
  if (status != COMBA_OK) return status;
  float *buffer = comba_allocate((size_t)tensor->elements * sizeof *buffer, name);
  if (!buffer) return COMBA_ERROR_MEMORY;
  status = comba_stored_tensor_floats(tensor, buffer);
  if (status != COMBA_OK) {
    free(buffer);
    return status;
  }
  *shape = tensor->shape;
  *values = buffer;
  return COMBA_OK;
}

comba_status comba_forward_write(comba_model *model, const comba_batch *batch, bool has_loss,
                                 const comba_forward_options *o) {
  const size_t count = comba_model_parameters(model);
  comba_model_info info;
  comba_model_describe(model, &info);
  const bool vision = info.kind == COMBA_KIND_VISION;
  const int64_t logits_shape[3] = {batch->batch, vision ? info.num_classes : batch->length, info.vocab_size}, one = 1;
  typedef char gradient_name[COMBA_MAX_NAME + 8];
  gradient_name *names = NULL;
  float *logits = NULL, loss = 0;
  size_t written = 0;
  comba_status status = COMBA_OK;
  comba_written_tensor *tensors = comba_allocate((count + 2) * sizeof *tensors, "the list of results");
  names = comba_allocate(count * sizeof *names, "the list of results");
  if (!tensors || !names) COMBA_TRY(COMBA_ERROR_MEMORY);
  status = comba_model_forward(model, batch, o->gradients ? COMBA_PASS_TRAIN : COMBA_PASS_EVALUATE, &loss);
  if (status != COMBA_OK) {
    comba_fail_in(status, "%s", o->input); /* an id or a label that the model has not */
    goto cleanup;
  }
  const size_t bytes =
      (size_t)(batch->batch * (vision ? info.num_classes : batch->length * info.vocab_size)) * sizeof *logits;
  logits = comba_allocate(bytes, "the logits");
  if (!logits) COMBA_TRY(COMBA_ERROR_MEMORY);
  memcpy(logits, comba_model_logits(model), bytes); /* the backward pass reuses their memory */
  tensors[written++] = (comba_written_tensor){"logits", COMBA_STORED_F32, vision ? 2 : 3, logits_shape, logits};
  if (has_loss) tensors[written++] = (comba_written_tensor){"loss", COMBA_STORED_F32, 1, &one, &loss};
  if (o->gradients) {
    comba_model_zero_gradient(model);
    COMBA_TRY(comba_model_backward(model, 1));
    for (size_t i = 0; i < count; i++) {
      comba_parameter parameter;
      COMBA_TRY(comba_model_parameter(model, i, &parameter));
      snprintf(names[i], sizeof names[i], "grad.%s", parameter.name);
      tensors[written++] =
          (comba_written_tensor){names[i], COMBA_STORED_F32, parameter.rank, parameter.shape, parameter.gradient};
    }
  }
  COMBA_TRY(comba_safetensors_write(o->output, tensors, written, NULL));
cleanup:
  free(tensors);
  free(names);
  free(logits);
  return status;
}

/* ---- Command line ---- */

enum { MODEL = 1, INPUT, OUTPUT, GRADIENTS };
static const struct argp_option list[] = {
    {"model", MODEL, "DIR", 0, "Folder with config.json and model.safetensors", 0},
    {"input", INPUT, "FILE", 0, "safetensors to read", 0},
    {"output", OUTPUT, "FILE", 0, "safetensors to write", 0},
    {"gradients", GRADIENTS, 0, 0, "Write the gradient of the loss for every weight", 0},
    {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
  comba_forward_options *o = state->input;
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

static const struct argp_child children[] = {{&comba_common_argp, 0, 0, 0}, {0}};
static const struct argp forward_argp = {.options = list, .parser = parse, .children = children};
const struct argp_child comba_forward_children[] = {{&forward_argp, 0, 0, 0}, {0}};

int comba_forward_run(int argc, char **argv, const struct argp *argp,
                      comba_status (*run)(const comba_forward_options *options)) {
  comba_forward_options o = {.common = comba_common_defaults()};
  comba_options_parse(argp, argc, argv, &o);
  const comba_status status = run(&o);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
