/* A model's life: config, weights, load and save. Running it is in run.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "model/pictures.h"
#include "model/safetensors.h"
#include "mixers/mixer.h"

void comba_options_default(comba_options *options) {
  *options = (comba_options){.seed = 42};
}

comba_build comba_model_build_context(const comba_model *model, comba_graph *graph) {
  const comba_config *config = model->config;
  const bool vision = config->kind == COMBA_KIND_VISION;
  const double range = config->initializer_range;
  comba_build build = {
      .graph = graph,
      .config = config,
      .parameters = (comba_parameters *)&model->parameters,
      .mode = model->options.mode,
      .causal = !vision,
      .norm_eps = config->norm_eps,
      .label_smoothing = model->options.label_smoothing,
      .class_weights = model->class_weights,
      .matrix_initial = {vision ? COMBA_DRAW_TRUNCATED_NORMAL : COMBA_DRAW_NORMAL, range},
      /* fla draws convolution taps like matrices; fla-zoo leaves them at Conv1d's default, uniform up to 1/sqrt(taps) */
      .convolution_initial = {COMBA_DRAW_NORMAL, range},
  };
  if (vision) build.convolution_initial = (comba_initial){COMBA_DRAW_UNIFORM, 0.5};
  return build;
}

/* Runs the forward code once, for the names and shapes of all parameters. */
static comba_status declare(comba_model *model) {
  comba_graph *graph = NULL;
  comba_status status = comba_graph_create(&graph, model->backend, 0);
  if (status != COMBA_OK) return status;
  comba_build build = comba_model_build_context(model, graph);
  comba_plan plan = {.batch = 1, .length = model->config->kind == COMBA_KIND_VISION ? model->config->image_size : 1};
  build.declaring = true;
  build.batch = build.length = 1;
  if (model->config->kind == COMBA_KIND_VISION)
    comba_vision_build(&build, &plan);
  else
    comba_language_build(&build, &plan);
  status = comba_graph_status(graph);
  comba_graph_free(graph);
  return status;
}

/* A model whose weights have names and shapes, but no memory yet, on the backend that `open` gives. Takes over `config`, also on
 * failure. */
static comba_status create(comba_model **out, comba_config *config, const comba_options *options,
                           comba_status (*open)(const comba_backend **, const comba_options *)) {
  comba_status status = COMBA_OK;
  comba_model *model = comba_allocate(sizeof *model, "a model");
  if (!model) {
    comba_config_free(config);
    return COMBA_ERROR_MEMORY;
  }
  model->config = config;
  comba_options_default(&model->options);
  if (options) model->options = *options;
  COMBA_TRY(open(&model->backend, &model->options));
  model->parameters.memory = model->backend->memory;
  model->training_run.seed = model->evaluation_run.seed = model->options.seed;
  COMBA_TRY(comba_config_write(config, &model->config_text));
  COMBA_TRY(declare(model));
  *out = model;
  return COMBA_OK;
cleanup:
  comba_model_free(model);
  return status;
}

comba_status comba_model_create(comba_model **out, const char *config_json, const comba_options *options) {
  comba_config *config = NULL;
  comba_model *model = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_config_parse(&config, config_json, "config", NULL));
  COMBA_TRY(create(&model, config, options, comba_backend_open));
  COMBA_TRY(comba_parameters_allocate(&model->parameters));
  COMBA_TRY(comba_parameters_initialize(&model->parameters, model->options.seed));
  *out = model;
  return COMBA_OK;
cleanup:
  comba_model_free(model);
  return status;
}

comba_status comba_model_plan(comba_model **out, const char *config_json, const comba_options *options) {
  comba_config *config = NULL;
  comba_model *model = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_config_parse(&config, config_json, "config", NULL));
  COMBA_TRY(create(&model, config, options, comba_backend_plan));
  COMBA_TRY(comba_parameters_allocate(&model->parameters));
  *out = model;
  return COMBA_OK;
cleanup:
  comba_model_free(model);
  return status;
}

/* Reads the weights, or with `check` alone holds the file against their names and shapes. */
static comba_status read_weights(comba_model *model, const char *directory, bool check) {
  const comba_parameters *parameters = &model->parameters;
  comba_safetensors *file = NULL;
  const size_t count = (size_t)parameters->count;
  const bool tied = model->config->kind == COMBA_KIND_LANGUAGE && model->config->tie_word_embeddings;
  comba_status status = COMBA_OK;
  comba_wanted_tensor *wanted = comba_allocate((count + 1) * sizeof *wanted, "the list of weights");
  if (!wanted) return COMBA_ERROR_MEMORY;
  for (size_t i = 0; i < count; i++) {
    const comba_weight *weight = &parameters->weight[i];
    wanted[i] =
        (comba_wanted_tensor){weight->name, weight->shape.rank, weight->shape.size,
                              check ? NULL : comba_parameters_host(parameters, weight, COMBA_ARRAY_WEIGHT), false};
  }
  if (tied) { /* some writers store the shared matrix under both names */
    char name[COMBA_MAX_NAME];
    snprintf(name, sizeof name, "%s.embeddings.weight", comba_mixer_names(model->config->mixer)->model);
    const comba_weight *embeddings = comba_parameters_find(parameters, name);
    wanted[count] = (comba_wanted_tensor){"lm_head.weight", embeddings->shape.rank, embeddings->shape.size, NULL, true};
  }
  COMBA_TRY(comba_safetensors_open_folder(&file, directory));
  const comba_packed *packed = model->config->mixer->packed;
  if (packed) COMBA_TRY(comba_safetensors_split(file, packed->suffix, packed->rows, packed->count));
  COMBA_TRY(comba_safetensors_load(file, wanted, count + tied));
cleanup:
  comba_safetensors_free(file);
  free(wanted);
  return status;
}

comba_status comba_model_load_weights(comba_model *model, const char *directory) {
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_model_show_host(model));
  COMBA_TRY(read_weights(model, directory, false));
  COMBA_TRY(comba_parameters_upload(&model->parameters, COMBA_ARRAY_WEIGHT));
cleanup:
  return status;
}

comba_status comba_model_show_host(comba_model *model) {
  if (model->host_is_current) return COMBA_OK;
  comba_status status = comba_parameters_download(&model->parameters, COMBA_ARRAY_WEIGHT);
  if (status == COMBA_OK) status = comba_parameters_download(&model->parameters, COMBA_ARRAY_GRADIENT);
  model->host_is_current = status == COMBA_OK;
  return status;
}

comba_status comba_model_take_host(comba_model *model) {
  if (!model->host_is_shown) return COMBA_OK;
  model->host_is_shown = false;
  return comba_parameters_upload(&model->parameters, COMBA_ARRAY_WEIGHT);
}

comba_status comba_model_load(comba_model **out, const char *directory, const comba_options *options) {
  comba_config *config = NULL;
  comba_model *model = NULL;
  char *path = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_path_join(&path, directory, "config.json"));
  COMBA_TRY(comba_config_read(&config, path, NULL));
  COMBA_TRY(create(&model, config, options, comba_backend_open));
  COMBA_TRY(read_weights(model, directory, true)); /* a config alone must not make the process take all memory */
  status = comba_parameters_allocate(&model->parameters);
  if (status != COMBA_OK) {
    comba_fail_in(status, "%s", path);
    goto cleanup;
  }
  COMBA_TRY(comba_model_load_weights(model, directory));
  *out = model;
  model = NULL;
cleanup:
  comba_model_free(model);
  free(path);
  return status;
}

comba_status comba_model_save(const comba_model *model, const char *directory) {
  const comba_parameters *parameters = &model->parameters;
  char *config_path = NULL, *weights_path = NULL;
  comba_status status = comba_model_show_host((comba_model *)model);
  if (status != COMBA_OK) return status;
  comba_written_tensor *tensors = comba_allocate((size_t)parameters->count * sizeof *tensors, "the list of weights");
  if (!tensors) return COMBA_ERROR_MEMORY;
  for (int i = 0; i < parameters->count; i++) {
    const comba_weight *weight = &parameters->weight[i];
    tensors[i] = (comba_written_tensor){weight->name, COMBA_STORED_F32, weight->shape.rank, weight->shape.size,
                                        comba_parameters_host(parameters, weight, COMBA_ARRAY_WEIGHT)};
  }
  COMBA_TRY(comba_path_join(&config_path, directory, "config.json"));
  COMBA_TRY(comba_path_join(&weights_path, directory, "model.safetensors"));
  COMBA_TRY(comba_file_write(config_path, model->config_text, strlen(model->config_text)));
  COMBA_TRY(comba_safetensors_write(weights_path, tensors, (size_t)parameters->count, NULL));
cleanup:
  free(config_path);
  free(weights_path);
  free(tensors);
  return status;
}

void comba_model_free(comba_model *model) {
  if (!model) return;
  for (int i = 0; i < COMBA_MAX_PLANS; i++) {
    comba_graph_free(model->plan[i].graph);
    comba_picture_feed_free(model->plan[i].feed);
  }
  comba_graph_free(model->optimizer_graph);
  comba_parameters_release(&model->parameters);
  comba_config_free(model->config);
  free(model->config_text);
  if (model->class_weights) model->backend->memory->release(model->class_weights);
  for (int turn = 0; turn < 2; turn++)
    if (model->results[turn]) model->backend->memory->release_shared(model->results[turn]);
  free(model->logits_copy);
  free(model->row_losses_copy);
  free(model);
}

comba_status comba_model_set_class_weights(comba_model *model, const float *weights) {
  const size_t bytes = (size_t)model->config->num_classes * sizeof *weights;
  const comba_device_memory *memory = model->backend->memory;
  if (!model->class_weights) model->class_weights = memory->allocate(bytes, "the class weights");
  return model->class_weights ? memory->write(model->class_weights, weights, bytes) : COMBA_ERROR_MEMORY;
}

void comba_model_describe(const comba_model *model, comba_model_info *info) {
  const comba_config *config = model->config;
  *info = (comba_model_info){
      .kind = config->kind,
      .model_type = config->model_type,
      .parameters = comba_parameters_elements(&model->parameters),
      .hidden_size = config->hidden_size,
      .layers = config->num_hidden_layers,
  };
  if (config->kind == COMBA_KIND_VISION) {
    info->num_classes = config->num_classes;
    info->image_size = config->image_size;
    info->num_channels = config->num_channels;
  } else {
    info->vocab_size = config->vocab_size;
  }
}

const char *comba_model_config(const comba_model *model) {
  return model->config_text;
}

const char *comba_model_class_name(const comba_model *model, int64_t index) {
  return comba_config_class_name(model->config, index);
}

size_t comba_model_parameters(const comba_model *model) {
  return (size_t)model->parameters.count;
}

comba_status comba_model_parameter(const comba_model *model, size_t index, comba_parameter *parameter) {
  comba_model *shown = (comba_model *)model;
  const comba_status status = comba_model_show_host(shown);
  shown->host_is_shown = true;
  return status == COMBA_OK ? comba_parameters_describe(&model->parameters, index, parameter) : status;
}

void comba_model_zero_gradient(comba_model *model) {
  comba_parameters_zero_gradient(&model->parameters);
  model->host_is_current = false;
}
