/* AdamW over the two slabs of a model's weights, as a graph of its own; what changes from step to step lies in its
 * settings input. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_private.h"
#include "model/safetensors.h"
#include "ops/ops.h"

void comba_optimizer_default(comba_optimizer *optimizer) {
  *optimizer = (comba_optimizer){.learning_rate = 3e-4f,
                                 .beta1 = 0.9f,
                                 .beta2 = 0.95f,
                                 .epsilon = 1e-8f,
                                 .weight_decay = 0.01f,
                                 .gradient_clip = 1.0f};
}

static comba_tensor *slab_tensor(comba_graph *graph, const char *name, comba_class kind, const comba_slab *slab,
                                 comba_array array) {
  return comba_graph_external(graph, name, kind, COMBA_SHAPE(slab->elements), slab->data[array]);
}

static comba_status build_optimizer(comba_model *model, bool decay_scalars) {
  comba_graph *graph = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_parameters_allocate_moments(&model->parameters));
  COMBA_TRY(comba_graph_create(&graph, model->backend, 0));
  const comba_slab *slabs = model->parameters.slab;
  comba_tensor *settings = comba_graph_input(graph, "settings", COMBA_STATE, COMBA_SHAPE(COMBA_ADAMW_SETTINGS));
  comba_tensor *gradient[COMBA_SLABS];
  for (int i = 0; i < COMBA_SLABS; i++)
    gradient[i] = slab_tensor(graph, "gradient", COMBA_STATE, &slabs[i], COMBA_ARRAY_GRADIENT);
  comba_tensor *clip = comba_gradient_clip(graph, settings, gradient[0], gradient[1]);
  comba_graph_keep(graph, clip);
  for (int i = 0; i < COMBA_SLABS; i++) {
    comba_tensor *weight = slab_tensor(graph, "weight", COMBA_PARAMETER, &slabs[i], COMBA_ARRAY_WEIGHT);
    comba_tensor *moment1 = slab_tensor(graph, "moment1", COMBA_STATE, &slabs[i], COMBA_ARRAY_MOMENT1);
    comba_tensor *moment2 = slab_tensor(graph, "moment2", COMBA_STATE, &slabs[i], COMBA_ARRAY_MOMENT2);
    comba_tensor *moments[2] = {NULL, NULL};
    comba_tensor *next = comba_adamw(graph, weight, gradient[i], moment1, moment2, settings, clip,
                                     i == COMBA_SLAB_DECAYED || decay_scalars, moments);
    comba_graph_store(graph, next, weight);
    comba_graph_store(graph, moments[0], moment1);
    comba_graph_store(graph, moments[1], moment2);
  }
  COMBA_TRY(comba_graph_plan(graph));
  comba_graph_free(model->optimizer_graph);
  model->optimizer_graph = graph;
  model->optimizer_settings = settings;
  model->optimizer_clip = clip;
  model->optimizer_decays_scalars = decay_scalars;
  graph = NULL;
cleanup:
  comba_graph_free(graph);
  return status;
}

static comba_status check(const comba_optimizer *o) {
  const struct {
    const char *name;
    float value, minimum, maximum;
  } settings[] = {
      {"learning_rate", o->learning_rate, 0, INFINITY},
      {"beta1", o->beta1, 0, 1},
      {"beta2", o->beta2, 0, 1},
      {"epsilon", o->epsilon, 0, INFINITY},
      {"weight_decay", o->weight_decay, 0, INFINITY},
      {"gradient_clip", o->gradient_clip, 0, INFINITY},
  };
  for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
    if (!(settings[i].value >= settings[i].minimum && settings[i].value <= settings[i].maximum))
      return comba_fail(COMBA_ERROR_ARGUMENT, "optimizer: %s is %g, expected %g to %g", settings[i].name,
                        (double)settings[i].value, (double)settings[i].minimum, (double)settings[i].maximum);
  return COMBA_OK;
}

comba_status comba_model_queue_step(comba_model *model, const comba_optimizer *o, int turn) {
  comba_status status = check(o);
  if (status == COMBA_OK && (!model->optimizer_graph || model->optimizer_decays_scalars != !!o->decay_scalars))
    status = build_optimizer(model, o->decay_scalars);
  if (status != COMBA_OK) return status;
  const double step = (double)(model->optimizer_step + 1);
  const comba_device_memory *memory = model->backend->memory;
  float settings[COMBA_ADAMW_SETTINGS];
  settings[COMBA_ADAMW_LEARNING_RATE] = o->learning_rate;
  settings[COMBA_ADAMW_BETA1] = o->beta1;
  settings[COMBA_ADAMW_BETA2] = o->beta2;
  settings[COMBA_ADAMW_EPSILON] = o->epsilon;
  settings[COMBA_ADAMW_WEIGHT_DECAY] = o->weight_decay;
  settings[COMBA_ADAMW_CORRECTION1] = (float)(1 - pow(o->beta1, step));
  settings[COMBA_ADAMW_CORRECTION2] = (float)(1 - pow(o->beta2, step));
  settings[COMBA_ADAMW_MAX_NORM] = o->gradient_clip;
  COMBA_TRY(comba_tensor_write(model->optimizer_graph, model->optimizer_settings, settings));
  comba_graph_forward(model->optimizer_graph);
  model->host_is_current = false;
  COMBA_TRY(memory->read_behind(model->results[turn], model->optimizer_clip->data, 2 * sizeof(float)));
  COMBA_TRY(memory->mark(turn));
cleanup:
  return status;
}

comba_status comba_model_await_step(comba_model *model, int turn, float *gradient_norm, const float **losses) {
  const comba_status status = model->backend->memory->wait(turn);
  if (status != COMBA_OK) return status;
  *gradient_norm = model->results[turn][0];
  *losses = model->results[turn] + 2;
  if (isfinite(*gradient_norm)) model->optimizer_step++;
  return COMBA_OK;
}

comba_status comba_model_step(comba_model *model, const comba_optimizer *optimizer, float *gradient_norm) {
  comba_optimizer defaults;
  comba_optimizer_default(&defaults);
  float norm = 0;
  const float *losses;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_model_reserve_results(model, 1));
  COMBA_TRY(comba_model_queue_step(model, optimizer ? optimizer : &defaults, 0));
  COMBA_TRY(comba_model_await_step(model, 0, &norm, &losses));
  if (gradient_norm) *gradient_norm = norm;
cleanup:
  return status;
}

comba_status comba_model_nonfinite_gradient(comba_model *model, const char **name) {
  const comba_parameters *parameters = &model->parameters;
  const comba_status status = comba_model_show_host(model);
  *name = NULL;
  for (int i = 0; status == COMBA_OK && !*name && i < parameters->count; i++) {
    const comba_weight *weight = &parameters->weight[i];
    const float *gradient = comba_parameters_host(parameters, weight, COMBA_ARRAY_GRADIENT);
    const int64_t elements = comba_shape_elements(&weight->shape);
    for (int64_t k = 0; k < elements && !*name; k++)
      if (!isfinite(gradient[k])) *name = weight->name;
  }
  return status;
}

/* Moments are stored under NAME.moment1 and NAME.moment2, the number of steps as metadata. */
static const char *const suffix[2] = {".moment1", ".moment2"};

typedef char moment_name[COMBA_MAX_NAME + 16];

static moment_name *moment_names(const comba_parameters *parameters) {
  moment_name *names = comba_allocate((size_t)parameters->count * 2 * sizeof *names, "names of moments");
  if (!names) return NULL;
  for (int i = 0; i < 2 * parameters->count; i++) {
    strcpy(names[i], parameters->weight[i / 2].name);
    strcat(names[i], suffix[i % 2]);
  }
  return names;
}

comba_status comba_model_save_optimizer(const comba_model *model, const char *path) {
  comba_parameters *parameters = (comba_parameters *)&model->parameters;
  comba_status status = COMBA_OK;
  const size_t count = 2 * (size_t)parameters->count;
  comba_written_tensor *tensors = NULL;
  moment_name *names = NULL;
  COMBA_TRY(comba_parameters_allocate_moments(parameters));
  COMBA_TRY(comba_parameters_download(parameters, COMBA_ARRAY_MOMENT1));
  COMBA_TRY(comba_parameters_download(parameters, COMBA_ARRAY_MOMENT2));
  names = moment_names(parameters);
  tensors = comba_allocate(count * sizeof *tensors, "the list of moments");
  if (!names || !tensors) COMBA_TRY(COMBA_ERROR_MEMORY);
  for (size_t i = 0; i < count; i++) {
    const comba_weight *weight = &parameters->weight[i / 2];
    tensors[i] =
        (comba_written_tensor){names[i], COMBA_STORED_F32, weight->shape.rank, weight->shape.size,
                               comba_parameters_host(parameters, weight, COMBA_ARRAY_MOMENT1 + (comba_array)(i % 2))};
  }
  char steps[32];
  snprintf(steps, sizeof steps, "%lld", (long long)model->optimizer_step);
  COMBA_TRY(comba_safetensors_write(path, tensors, count, (const char *const[]){"step", steps, NULL}));
cleanup:
  free(names);
  free(tensors);
  return status;
}

comba_status comba_model_load_optimizer(comba_model *model, const char *path) {
  comba_parameters *parameters = &model->parameters;
  comba_status status = COMBA_OK;
  const size_t count = 2 * (size_t)parameters->count;
  comba_safetensors *file = NULL;
  comba_wanted_tensor *wanted = NULL;
  moment_name *names = NULL;
  COMBA_TRY(comba_parameters_allocate_moments(parameters));
  COMBA_TRY(comba_parameters_download(parameters, COMBA_ARRAY_MOMENT1));
  COMBA_TRY(comba_parameters_download(parameters, COMBA_ARRAY_MOMENT2));
  names = moment_names(parameters);
  wanted = comba_allocate(count * sizeof *wanted, "the list of moments");
  if (!names || !wanted) COMBA_TRY(COMBA_ERROR_MEMORY);
  for (size_t i = 0; i < count; i++) {
    const comba_weight *weight = &parameters->weight[i / 2];
    wanted[i] = (comba_wanted_tensor){
        names[i], weight->shape.rank, weight->shape.size,
        comba_parameters_host(parameters, weight, COMBA_ARRAY_MOMENT1 + (comba_array)(i % 2)), false};
  }
  COMBA_TRY(comba_safetensors_open(&file, path));
  const char *text = comba_safetensors_metadata(file, "step");
  char *end = NULL;
  const long long step = text ? strtoll(text, &end, 10) : -1;
  if (step < 0 || end == text || *end)
    COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT, "%s: metadata 'step' is '%s', expected a number of steps", path,
                         text ? text : "missing"));
  COMBA_TRY(comba_safetensors_load(file, wanted, count));
  COMBA_TRY(comba_parameters_upload(parameters, COMBA_ARRAY_MOMENT1));
  COMBA_TRY(comba_parameters_upload(parameters, COMBA_ARRAY_MOMENT2));
  model->optimizer_step = step;
cleanup:
  comba_safetensors_free(file);
  free(names);
  free(wanted);
  return status;
}
