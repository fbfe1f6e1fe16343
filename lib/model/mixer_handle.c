/* The public comba_mixer: one token mixer with its own weights, for someone else's training loop. */
#include <stdlib.h>
#include <string.h>

#include "mixers/mixer.h"

struct comba_mixer {
  comba_config *config;
  comba_options options;
  const comba_backend *backend;
  comba_parameters parameters;
  comba_run run;
  /* the plan of the last size */
  comba_graph *graph;
  int64_t batch, length, sequences;
  comba_tensor *x, *y, *cu_seqlens;
  bool ran_forward;
  bool host_is_shown; /* the caller may have written weights through the host's copies */
};

static void build(comba_mixer *mixer, comba_graph *graph, bool declaring) {
  const comba_config *config = mixer->config;
  comba_build context = {
      .graph = graph,
      .config = config,
      .parameters = &mixer->parameters,
      .declaring = declaring,
      .batch = mixer->batch,
      .length = mixer->length,
      .mode = mixer->options.mode,
      .training = true,
      .causal = config->kind == COMBA_KIND_LANGUAGE,
      .norm_eps = config->norm_eps,
      .matrix_initial = {COMBA_DRAW_NORMAL, config->initializer_range},
      .convolution_initial = {COMBA_DRAW_NORMAL, config->initializer_range},
  };
  mixer->x = comba_graph_input_with_gradient(graph, "x", COMBA_SHAPE(mixer->batch, mixer->length, config->hidden_size));
  if (mixer->sequences)
    mixer->cu_seqlens = context.cu_seqlens =
        comba_graph_input(graph, "cu_seqlens", COMBA_INDEX, COMBA_SHAPE(mixer->sequences + 1));
  mixer->y = config->mixer->build(&context, config->mixer_config, mixer->x);
  comba_graph_keep(graph, mixer->y);
  comba_graph_seed(graph, mixer->y);
}

comba_status comba_mixer_create(comba_mixer **out, const char *config_json, const comba_options *options) {
  comba_graph *graph = NULL;
  comba_status status = COMBA_OK;
  comba_mixer *mixer = comba_allocate(sizeof *mixer, "a mixer");
  if (!mixer) return COMBA_ERROR_MEMORY;
  comba_options_default(&mixer->options);
  if (options) mixer->options = *options;
  COMBA_TRY(comba_backend_open(&mixer->backend, &mixer->options));
  mixer->parameters.memory = mixer->backend->memory;
  mixer->run.seed = mixer->options.seed;
  mixer->batch = mixer->length = 1;
  COMBA_TRY(comba_config_parse(&mixer->config, config_json, "config", NULL));
  COMBA_TRY(comba_graph_create(&graph, mixer->backend, 0));
  build(mixer, graph, true);
  COMBA_TRY(comba_graph_status(graph));
  COMBA_TRY(comba_parameters_allocate(&mixer->parameters));
  COMBA_TRY(comba_parameters_initialize(&mixer->parameters, mixer->options.seed));
  mixer->batch = mixer->length = 0;
  *out = mixer;
  mixer = NULL;
cleanup:
  comba_graph_free(graph);
  comba_mixer_free(mixer);
  return status;
}

void comba_mixer_free(comba_mixer *mixer) {
  if (!mixer) return;
  comba_graph_free(mixer->graph);
  comba_parameters_release(&mixer->parameters);
  comba_config_free(mixer->config);
  free(mixer);
}

size_t comba_mixer_parameters(const comba_mixer *mixer) {
  return (size_t)mixer->parameters.count;
}

comba_status comba_mixer_parameter(const comba_mixer *mixer, size_t index, comba_parameter *parameter) {
  comba_parameters *parameters = &((comba_mixer *)mixer)->parameters;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_parameters_download(parameters, COMBA_ARRAY_WEIGHT));
  COMBA_TRY(comba_parameters_download(parameters, COMBA_ARRAY_GRADIENT));
  ((comba_mixer *)mixer)->host_is_shown = true;
  COMBA_TRY(comba_parameters_describe(parameters, index, parameter));
cleanup:
  return status;
}

void comba_mixer_zero_gradient(comba_mixer *mixer) {
  comba_parameters_zero_gradient(&mixer->parameters);
}

static comba_status plan(comba_mixer *mixer, int64_t batch, int64_t length, int64_t sequences) {
  if (mixer->graph && mixer->batch == batch && mixer->length == length && mixer->sequences == sequences)
    return COMBA_OK;
  comba_graph_free(mixer->graph);
  mixer->graph = NULL;
  mixer->batch = batch;
  mixer->length = length;
  mixer->sequences = sequences;
  comba_status status = comba_graph_create(&mixer->graph, mixer->backend, COMBA_GRAPH_BACKWARD);
  if (status != COMBA_OK) return status;
  build(mixer, mixer->graph, false);
  status = comba_graph_plan(mixer->graph);
  if (status == COMBA_OK) {
    comba_graph_bind_run(mixer->graph, &mixer->run);
    return COMBA_OK;
  }
  comba_graph_free(mixer->graph);
  mixer->graph = NULL;
  return status;
}

comba_status comba_mixer_forward(comba_mixer *mixer, const float *x, int64_t batch, int64_t length,
                                 const int32_t *cu_seqlens, int64_t sequences, float *y) {
  if (batch < 1 || length < 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "mixer: batch %lld and length %lld, expected at least 1", (long long)batch,
                      (long long)length);
  comba_status status = cu_seqlens ? comba_check_sequences(cu_seqlens, sequences, batch, length) : COMBA_OK;
  if (status == COMBA_OK) status = plan(mixer, batch, length, cu_seqlens ? sequences : 0);
  if (status != COMBA_OK) return status;
  if (mixer->host_is_shown) COMBA_TRY(comba_parameters_upload(&mixer->parameters, COMBA_ARRAY_WEIGHT));
  mixer->host_is_shown = false;
  COMBA_TRY(comba_tensor_write(mixer->graph, mixer->x, x));
  if (cu_seqlens) COMBA_TRY(comba_tensor_write(mixer->graph, mixer->cu_seqlens, cu_seqlens));
  comba_graph_forward(mixer->graph);
  COMBA_TRY(comba_tensor_read(mixer->graph, mixer->y, y));
  mixer->ran_forward = true;
cleanup:
  return status;
}

comba_status comba_mixer_backward(comba_mixer *mixer, const float *dy, float *dx) {
  if (!mixer->ran_forward) return comba_fail(COMBA_ERROR_ARGUMENT, "mixer: backward without a forward before it");
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_tensor_write_gradient(mixer->graph, mixer->y, dy));
  comba_graph_backward(mixer->graph);
  mixer->ran_forward = false;
  if (dx) COMBA_TRY(comba_tensor_read_gradient(mixer->graph, mixer->x, dx));
cleanup:
  return status;
}
