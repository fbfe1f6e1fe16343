/* Decoding: the same forward code with states. Pieces of 1, 2, 4, ... 2048 tokens each have their plan; longer input is fed
 * in such pieces, so a decoder needs at most twelve plans whatever the prompt. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "mixers/mixer.h"
#include "model/model_private.h"
#include "model/safetensors.h"

enum { LARGEST_PIECE_LOG2 = 11 };

struct comba_decoder {
  comba_model *model;
  int64_t batch, capacity, position;
  comba_states states;
  comba_plan plan[LARGEST_PIECE_LOG2 + 1]; /* of 2^i tokens */
  comba_run run;
};

static comba_status build(comba_decoder *decoder, comba_plan *plan, bool declaring) {
  const unsigned flags =
      plan->length == 1 ? COMBA_GRAPH_TOGETHER : 0; /* single tokens are too little for a node at a time */
  comba_status status = comba_graph_create(&plan->graph, decoder->model->backend, flags);
  if (status != COMBA_OK) return status;
  comba_build context = comba_model_build_context(decoder->model, plan->graph);
  context.batch = decoder->batch;
  context.length = plan->length;
  context.capacity = decoder->capacity;
  context.states = &decoder->states;
  context.declaring = declaring;
  comba_language_build(&context, plan);
  status = declaring ? comba_graph_status(plan->graph) : comba_graph_plan(plan->graph);
  if (status == COMBA_OK && !declaring) {
    comba_graph_bind_run(plan->graph, &decoder->run);
    return COMBA_OK;
  }
  comba_graph_free(plan->graph);
  plan->graph = NULL;
  return status;
}

comba_status comba_decoder_create(comba_decoder **out, comba_model *model, int64_t batch, int64_t capacity) {
  comba_status status = COMBA_OK;
  if (model->config->kind != COMBA_KIND_LANGUAGE)
    return comba_fail(COMBA_ERROR_ARGUMENT, "decoder: model_type is '%s', expected a language model",
                      model->config->model_type);
  if (batch < 1 || capacity < 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "decoder: batch %lld and capacity %lld, expected at least 1",
                      (long long)batch, (long long)capacity);
  comba_decoder *decoder = comba_allocate(sizeof *decoder, "a decoder");
  if (!decoder) return COMBA_ERROR_MEMORY;
  decoder->model = model;
  decoder->batch = batch;
  decoder->capacity = capacity;
  comba_plan declaration = {.batch = batch, .length = 1};
  COMBA_TRY(build(decoder, &declaration, true));
  COMBA_TRY(comba_states_allocate(&decoder->states, model->backend->memory));
  *out = decoder;
  return COMBA_OK;
cleanup:
  comba_decoder_free(decoder);
  return status;
}

void comba_decoder_free(comba_decoder *decoder) {
  if (!decoder) return;
  for (int i = 0; i <= LARGEST_PIECE_LOG2; i++) comba_graph_free(decoder->plan[i].graph);
  comba_states_release(&decoder->states);
  free(decoder);
}

/* Whether a layer looks back on every token, so that the capacity is a bound. */
static bool is_bounded(const comba_decoder *decoder) {
  const comba_config *config = decoder->model->config;
  for (int64_t layer = 0; layer < config->num_hidden_layers; layer++)
    if (comba_layer_attends(config, layer) ? !config->hybrid[config->hybrid_of_layer[layer]].window_size
                                           : config->mixer->cost(config->mixer_config, config->hidden_size).state_grows)
      return true;
  return false;
}

static comba_status feed_piece(comba_decoder *decoder, const int32_t *ids, int64_t stride, int log2, float *logits) {
  comba_plan *plan = &decoder->plan[log2];
  const int64_t length = (int64_t)1 << log2;
  if (!plan->graph) {
    *plan = (comba_plan){.batch = decoder->batch, .length = length};
    const comba_status status = build(decoder, plan, false);
    if (status != COMBA_OK) return status;
  }
  const int32_t position = (int32_t)decoder->position;
  comba_status status = comba_model_take_host(decoder->model);
  if (status != COMBA_OK) return status;
  int32_t *piece = comba_allocate((size_t)(decoder->batch * length) * sizeof *piece, "a piece of tokens");
  if (!piece) return COMBA_ERROR_MEMORY;
  for (int64_t b = 0; b < decoder->batch; b++)
    memcpy(piece + b * length, ids + b * stride, (size_t)length * sizeof *ids);
  COMBA_TRY(comba_tensor_write(plan->graph, plan->input_ids, piece));
  COMBA_TRY(comba_tensor_write(plan->graph, plan->position, &position));
  comba_graph_forward(plan->graph);
  decoder->position += length;
  if (logits) COMBA_TRY(comba_tensor_read(plan->graph, plan->logits, logits));
cleanup:
  free(piece);
  return status;
}

comba_status comba_decoder_feed(comba_decoder *decoder, const int32_t *ids, int64_t length, float *logits) {
  const int64_t vocabulary = decoder->model->config->vocab_size;
  if (length < 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "decoder: length is %lld, expected at least 1", (long long)length);
  for (int64_t i = 0; i < decoder->batch * length; i++)
    if (ids[i] < 0 || ids[i] >= vocabulary)
      return comba_fail(COMBA_ERROR_ARGUMENT, "decoder: token %d at position %lld, expected 0 to %lld", (int)ids[i],
                        (long long)(i % length), (long long)vocabulary - 1);
  const int64_t limit = is_bounded(decoder) ? decoder->capacity : INT32_MAX;
  if (length > limit - decoder->position)
    return comba_fail(COMBA_ERROR_ARGUMENT, "decoder: %lld tokens after %lld exceed the capacity of %lld",
                      (long long)length, (long long)decoder->position, (long long)limit);
  for (int64_t done = 0; done < length;) {
    int log2 = LARGEST_PIECE_LOG2;
    while ((int64_t)1 << log2 > length - done) log2--;
    const bool last = done + ((int64_t)1 << log2) == length;
    const comba_status status = feed_piece(decoder, ids + done, length, log2, last ? logits : NULL);
    if (status != COMBA_OK) return status;
    done += (int64_t)1 << log2;
  }
  return COMBA_OK;
}

void comba_decoder_reset(comba_decoder *decoder) {
  decoder->position = 0;
  for (int i = 0; i < decoder->states.count; i++) {
    comba_state *state = &decoder->states.state[i];
    decoder->states.memory->zero(state->data, (size_t)comba_shape_elements(&state->shape) * sizeof *state->data);
  }
}

int64_t comba_decoder_position(const comba_decoder *decoder) {
  return decoder->position;
}

/* The host's copies of all states, one after another in one block; released with free(). */
static comba_status host_copies(const comba_states *states, bool read, float **block) {
  comba_status status = COMBA_OK;
  size_t elements = 0;
  for (int i = 0; i < states->count; i++) elements += (size_t)comba_shape_elements(&states->state[i].shape);
  float *next = *block = comba_allocate(elements * sizeof **block, "the states of a decoder");
  if (!next) return COMBA_ERROR_MEMORY;
  for (int i = 0; i < states->count && read && status == COMBA_OK; i++) {
    const size_t count = (size_t)comba_shape_elements(&states->state[i].shape);
    status = states->memory->read(next, states->state[i].data, count * sizeof *next);
    next += count;
  }
  return status;
}

comba_status comba_decoder_save(const comba_decoder *decoder, const char *path) {
  const comba_states *states = &decoder->states;
  comba_status status = COMBA_OK;
  float *block = NULL;
  comba_written_tensor *tensors = comba_allocate((size_t)states->count * sizeof *tensors, "the list of states");
  if (!tensors) return COMBA_ERROR_MEMORY;
  COMBA_TRY(host_copies(states, true, &block));
  const float *next = block;
  for (int i = 0; i < states->count; i++) {
    const comba_state *state = &states->state[i];
    tensors[i] = (comba_written_tensor){state->name, COMBA_STORED_F32, state->shape.rank, state->shape.size, next};
    next += comba_shape_elements(&state->shape);
  }
  char position[32];
  snprintf(position, sizeof position, "%lld", (long long)decoder->position);
  COMBA_TRY(
      comba_safetensors_write(path, tensors, (size_t)states->count, (const char *const[]){"position", position, NULL}));
cleanup:
  free(block);
  free(tensors);
  return status;
}

comba_status comba_decoder_restore(comba_decoder *decoder, const char *path) {
  const comba_states *states = &decoder->states;
  comba_safetensors *file = NULL;
  comba_status status = COMBA_OK;
  float *block = NULL;
  comba_wanted_tensor *wanted = comba_allocate((size_t)states->count * sizeof *wanted, "the list of states");
  if (!wanted) return COMBA_ERROR_MEMORY;
  COMBA_TRY(host_copies(states, false, &block));
  float *next = block;
  for (int i = 0; i < states->count; i++) {
    const comba_state *state = &states->state[i];
    wanted[i] = (comba_wanted_tensor){state->name, state->shape.rank, state->shape.size, next, false};
    next += comba_shape_elements(&state->shape);
  }
  COMBA_TRY(comba_safetensors_open(&file, path));
  const char *text = comba_safetensors_metadata(file, "position");
  char *end = NULL;
  const long long position = text ? strtoll(text, &end, 10) : -1;
  if (position < 0 || position > INT32_MAX || end == text || *end)
    COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT, "%s: metadata 'position' is '%s', expected a number of tokens", path,
                         text ? text : "missing"));
  COMBA_TRY(comba_safetensors_load(file, wanted, (size_t)states->count));
  for (int i = 0; i < states->count; i++)
    COMBA_TRY(states->memory->write(states->state[i].data, wanted[i].data,
                                    (size_t)comba_shape_elements(&states->state[i].shape) * sizeof(float)));
  decoder->position = position;
cleanup:
  comba_safetensors_free(file);
  free(block);
  free(wanted);
  return status;
}
