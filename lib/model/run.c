/* Running a model: a plan for each (pass, batch, length), made when first asked for and kept. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "model/pictures.h"

/* `level` in the first `blocks` layers, the level below it in the others. */
static comba_status lay_out(comba_model *model, comba_plan *plan, comba_recompute level, int blocks) {
  const bool training = plan->pass == COMBA_PASS_TRAIN;
  comba_status status = comba_graph_create(&plan->graph, model->backend, training ? COMBA_GRAPH_BACKWARD : 0);
  if (status != COMBA_OK) return status;
  comba_graph_set_recompute(plan->graph, level, blocks);
  comba_build build = comba_model_build_context(model, plan->graph);
  build.batch = plan->batch;
  build.length = plan->length;
  build.training = training;
  if (model->config->kind == COMBA_KIND_VISION)
    comba_vision_build(&build, plan);
  else
    comba_language_build(&build, plan);
  return comba_graph_layout(plan->graph);
}

void comba_model_bytes_of(const comba_model *model, comba_model_bytes *bytes) {
  size_t elements = 0;
  for (int i = 0; i < COMBA_SLABS; i++) elements += (size_t)model->parameters.slab[i].elements;
  *bytes = (comba_model_bytes){.weights = elements * sizeof(float),
                               .gradients = elements * sizeof(float),
                               .moments = 2 * elements * sizeof(float)};
  const size_t activation = model->backend->size[COMBA_ACTIVATION];
  if (activation < sizeof(float)) bytes->narrow_weights = elements * activation;
}

static size_t less(size_t bytes, size_t taken) {
  return bytes > taken ? bytes - taken : 0;
}

static size_t training_bytes(const comba_model *model) {
  comba_model_bytes bytes;
  comba_model_bytes_of(model, &bytes);
  return bytes.weights + bytes.narrow_weights + bytes.gradients + bytes.moments;
}

/* Bytes that the arena of a training plan may take; arenas of other plans give way to it. */
static size_t room(const comba_model *model) {
  const comba_device_memory *memory = model->backend->memory;
  if (model->options.memory) return less(model->options.memory, training_bytes(model) + model->backend->products_bytes);
  if (!memory->available) return SIZE_MAX;
  size_t available = memory->available();
  if (memory->is_planned) return less(available, training_bytes(model) + model->backend->products_bytes);
  for (int i = 0; i < COMBA_MAX_PLANS; i++) {
    comba_graph_cost cost = {0};
    if (model->plan[i].graph) comba_graph_describe(model->plan[i].graph, &cost);
    available += cost.arena_bytes;
  }
  comba_model_bytes bytes;
  comba_model_bytes_of(model, &bytes);
  return model->parameters.slab[0].data[COMBA_ARRAY_MOMENT1] ? available : less(available, bytes.moments);
}

/* The choices of AUTO, in order: nothing; LIGHT in the first 1, 2, ... all blocks; BLOCK in place of it in the first 1, 2, ... all. */
static comba_status lay_out_choice(comba_model *model, comba_plan *plan, int choice, int blocks) {
  if (!choice) return lay_out(model, plan, COMBA_RECOMPUTE_NONE, INT_MAX);
  if (choice <= blocks) return lay_out(model, plan, COMBA_RECOMPUTE_LIGHT, choice);
  return lay_out(model, plan, COMBA_RECOMPUTE_BLOCK, choice - blocks);
}

/* Lays the plan out by the first choice that fits, or the last. A bisection, which with more room goes the same way or to an earlier
 * one: more memory never computes more again. */
static comba_status lay_out_what_fits(comba_model *model, comba_plan *plan) {
  const comba_plan wanted = *plan;
  const size_t most = room(model);
  int blocks = 0, first = 0, last = 0; /* the choice is one of first to last, which plan holds if it has been tried */
  for (int choice = 0; first < last || !plan->graph; choice = (first + last) / 2) {
    comba_plan trial = wanted;
    comba_graph_cost cost = {0};
    const comba_status status = lay_out_choice(model, &trial, choice, blocks);
    if (status == COMBA_OK) comba_graph_describe(trial.graph, &cost);
    if (!choice) last = 2 * (blocks = cost.blocks);
    const bool taken = status == COMBA_OK && (cost.arena_bytes <= most || choice == 2 * blocks);
    comba_graph_free(taken ? plan->graph : trial.graph);
    if (status != COMBA_OK) return status;
    if (taken) {
      *plan = trial;
      last = choice;
    } else {
      first = choice + 1;
    }
  }
  return COMBA_OK;
}

/* Lays the plan out at the level that the options ask for. */
static comba_status lay_out_level(comba_model *model, comba_plan *plan) {
  const comba_recompute asked = plan->pass == COMBA_PASS_TRAIN ? model->options.recompute : COMBA_RECOMPUTE_NONE;
  return asked == COMBA_RECOMPUTE_AUTO ? lay_out_what_fits(model, plan) : lay_out(model, plan, asked, INT_MAX);
}

static comba_status make_plan(comba_model *model, comba_plan *plan) {
  const bool training = plan->pass == COMBA_PASS_TRAIN;
  comba_status status = COMBA_OK;
  COMBA_TRY(lay_out_level(model, plan));
  COMBA_TRY(comba_graph_plan(plan->graph));
  comba_graph_bind_run(plan->graph, training ? &model->training_run : &model->evaluation_run);
  return COMBA_OK;
cleanup:
  comba_graph_free(plan->graph);
  plan->graph = NULL;
  return status;
}

static void drop_plan(comba_model *model, comba_plan *plan) {
  if (model->current == plan) model->current = NULL;
  comba_graph_free(plan->graph);
  comba_picture_feed_free(plan->feed);
  *plan = (comba_plan){0};
}

/* The plan of this size; the one unused for longest makes room for a new one, and the others too where memory is short. */
static comba_status find_plan(comba_model *model, comba_pass pass, int64_t batch, int64_t length, int64_t sequences,
                              comba_plan **out) {
  comba_plan *oldest = &model->plan[0];
  for (int i = 0; i < COMBA_MAX_PLANS; i++) {
    comba_plan *plan = &model->plan[i];
    if (plan->graph && plan->pass == pass && plan->batch == batch && plan->length == length &&
        plan->sequences == sequences) {
      *out = plan;
      plan->last_use = ++model->uses;
      return COMBA_OK;
    }
    if (plan->last_use < oldest->last_use) oldest = plan;
  }
  drop_plan(model, oldest);
  const comba_plan wanted = {.pass = pass, .batch = batch, .length = length, .sequences = sequences};
  *oldest = wanted;
  comba_status status = make_plan(model, oldest);
  bool others = false;
  for (int i = 0; status == COMBA_ERROR_MEMORY && i < COMBA_MAX_PLANS; i++) {
    others |= model->plan[i].graph != NULL;
    drop_plan(model, &model->plan[i]);
  }
  if (others) {
    *oldest = wanted;
    status = make_plan(model, oldest);
  }
  if (status != COMBA_OK) {
    *oldest = (comba_plan){0};
    return status;
  }
  oldest->last_use = ++model->uses;
  *out = oldest;
  return COMBA_OK;
}

static comba_status check_range(const int32_t *values, int64_t count, int64_t limit, bool ignorable, const char *what) {
  for (int64_t i = 0; i < count; i++)
    if (values[i] >= limit || (values[i] < 0 && !(ignorable && values[i] == -100)))
      return comba_fail(COMBA_ERROR_ARGUMENT, "%s: value %d at position %lld, expected 0 to %lld%s", what,
                        (int)values[i], (long long)i, (long long)limit - 1, ignorable ? " or -100" : "");
  return COMBA_OK;
}

comba_status comba_check_sequences(const int32_t *cu_seqlens, int64_t sequences, int64_t batch, int64_t length) {
  if (batch != 1) return comba_fail(COMBA_ERROR_ARGUMENT, "cu_seqlens: batch is %lld, expected 1", (long long)batch);
  if (sequences < 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "cu_seqlens: %lld sequences, expected at least 1", (long long)sequences);
  for (int64_t i = 0; i <= sequences; i++) {
    const bool bad = i == 0 ? cu_seqlens[i] != 0 : cu_seqlens[i] < cu_seqlens[i - 1] || cu_seqlens[i] > length;
    if (bad || (i == sequences && cu_seqlens[i] != length))
      return comba_fail(COMBA_ERROR_ARGUMENT, "cu_seqlens: entry %lld is %d, expected offsets that rise from 0 to %lld",
                        (long long)i, (int)cu_seqlens[i], (long long)length);
  }
  return COMBA_OK;
}

static int64_t image_side(const comba_model *model, const comba_batch *batch) {
  return batch->image_size ? batch->image_size : model->config->image_size;
}

static comba_status check_batch(const comba_model *model, const comba_batch *batch) {
  const comba_config *config = model->config;
  if (batch->batch < 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "batch is %lld, expected at least 1", (long long)batch->batch);
  if (config->kind == COMBA_KIND_VISION) {
    if (!batch->pixel_values && !batch->pictures)
      return comba_fail(COMBA_ERROR_ARGUMENT, "pixel_values is missing: the model is a vision model");
    if (batch->pictures && (!batch->pictures->pixels || !batch->pictures->crops || config->num_channels > 3))
      return comba_fail(COMBA_ERROR_ARGUMENT, "pictures: expected pixels, crops, and a model of at most 3 channels");
    const int64_t side = image_side(model, batch);
    if (side != config->image_size &&
        (!config->interpolate_pos_encoding || side < config->patch_size || side % config->patch_size))
      return comba_fail(COMBA_ERROR_ARGUMENT, "pixel_values: the side is %lld, expected image_size %lld%s",
                        (long long)side, (long long)config->image_size,
                        config->interpolate_pos_encoding ? " or another multiple of patch_size"
                                                         : " (another one needs interpolate_pos_encoding)");
    return batch->labels ? check_range(batch->labels, batch->batch, config->num_classes, true, "labels") : COMBA_OK;
  }
  if (!batch->input_ids) return comba_fail(COMBA_ERROR_ARGUMENT, "input_ids is missing: the model is a language model");
  if (batch->length < 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "length is %lld, expected at least 1", (long long)batch->length);
  const int64_t tokens = batch->batch * batch->length;
  comba_status status = check_range(batch->input_ids, tokens, config->vocab_size, false, "input_ids");
  if (status == COMBA_OK && batch->targets)
    status = check_range(batch->targets, tokens, config->vocab_size, true, "targets");
  if (status == COMBA_OK && batch->cu_seqlens)
    status = comba_check_sequences(batch->cu_seqlens, batch->sequences, batch->batch, batch->length);
  return status;
}

/* The target of a token is the next token of its sequence; the last has none. */
static void shift_targets(const comba_batch *batch, int32_t *targets) {
  const int64_t T = batch->length;
  for (int64_t b = 0; b < batch->batch; b++) {
    memcpy(targets + b * T, batch->input_ids + b * T + 1, (size_t)(T - 1) * sizeof *targets);
    targets[b * T + T - 1] = -100;
  }
  if (!batch->cu_seqlens) return;
  for (int64_t i = 1; i <= batch->sequences; i++)
    if (batch->cu_seqlens[i] > 0) targets[batch->cu_seqlens[i] - 1] = -100;
}

static comba_status write_targets(comba_plan *plan, const comba_batch *batch) {
  const int32_t *given = plan->pixel_values ? batch->labels : batch->targets;
  if (given) return comba_tensor_write(plan->graph, plan->targets, given);
  const size_t count = (size_t)comba_shape_elements(&plan->targets->shape);
  int32_t *targets = comba_allocate(count * sizeof *targets, "targets");
  if (!targets) return COMBA_ERROR_MEMORY;
  if (plan->pixel_values)
    for (size_t i = 0; i < count; i++) targets[i] = -100;
  else
    shift_targets(batch, targets);
  const comba_status status = comba_tensor_write(plan->graph, plan->targets, targets);
  free(targets);
  return status;
}

static comba_status write_inputs(comba_plan *plan, const comba_backend *backend, const comba_batch *batch) {
  comba_status status = COMBA_OK;
  if (batch->pictures && plan->pixel_values)
    COMBA_TRY(comba_pictures_write(plan, backend, batch->pictures));
  else if (plan->pixel_values)
    COMBA_TRY(comba_tensor_write(plan->graph, plan->pixel_values, batch->pixel_values));
  if (plan->input_ids) COMBA_TRY(comba_tensor_write(plan->graph, plan->input_ids, batch->input_ids));
  if (plan->cu_seqlens) COMBA_TRY(comba_tensor_write(plan->graph, plan->cu_seqlens, batch->cu_seqlens));
  COMBA_TRY(write_targets(plan, batch));
cleanup:
  return status;
}

static comba_status forward(comba_model *model, const comba_batch *batch, comba_pass pass) {
  comba_plan *plan = NULL;
  comba_status status = check_batch(model, batch);
  if (status != COMBA_OK) return status;
  const bool vision = model->config->kind == COMBA_KIND_VISION;
  status = find_plan(model, pass, batch->batch, vision ? image_side(model, batch) : batch->length,
                     !vision && batch->cu_seqlens ? batch->sequences : 0, &plan);
  if (status != COMBA_OK) return status;
  COMBA_TRY(comba_model_take_host(model));
  COMBA_TRY(write_inputs(plan, model->backend, batch));
  comba_graph_forward(plan->graph);
  model->current = plan;
cleanup:
  return status;
}

comba_status comba_model_forward(comba_model *model, const comba_batch *batch, comba_pass pass, float *loss) {
  const comba_status status = forward(model, batch, pass);
  if (status != COMBA_OK || !loss) return status;
  return comba_tensor_read(model->current->graph, model->current->loss, loss);
}

comba_status comba_model_reserve_results(comba_model *model, int64_t micro_batches) {
  const comba_device_memory *memory = model->backend->memory;
  if (micro_batches <= model->results_capacity) return COMBA_OK;
  for (int turn = 0; turn < 2; turn++) {
    memory->release_shared(model->results[turn]);
    model->results[turn] = memory->allocate_shared((size_t)(2 + micro_batches) * sizeof(float), "losses of a step");
    if (!model->results[turn]) return COMBA_ERROR_MEMORY;
  }
  model->results_capacity = micro_batches;
  return COMBA_OK;
}

comba_status comba_model_queue_forward(comba_model *model, const comba_batch *batch, int turn, int64_t micro_batch) {
  const comba_status status = forward(model, batch, COMBA_PASS_TRAIN);
  if (status != COMBA_OK) return status;
  return model->backend->memory->read_behind(model->results[turn] + 2 + micro_batch, model->current->loss->data,
                                             sizeof(float));
}

/* The values of a result of the last forward where the host can read them; `copy` is the model's buffer for those of a device. */
static const float *values(const comba_model *model, const comba_tensor *tensor, float **copy) {
  if (model->backend->memory->is_host) return tensor->data;
  free(*copy);
  *copy = comba_allocate((size_t)comba_shape_elements(&tensor->shape) * sizeof **copy, "results of a model");
  return *copy && comba_tensor_read(model->current->graph, tensor, *copy) == COMBA_OK ? *copy : NULL;
}

const float *comba_model_logits(const comba_model *model) {
  return model->current ? values(model, model->current->logits, &((comba_model *)model)->logits_copy) : NULL;
}

const float *comba_model_row_losses(const comba_model *model) {
  return model->current ? values(model, model->current->row_losses, &((comba_model *)model)->row_losses_copy) : NULL;
}

comba_status comba_model_backward(comba_model *model, float scale) {
  if (!model->current || model->current->pass != COMBA_PASS_TRAIN)
    return comba_fail(COMBA_ERROR_ARGUMENT, "backward: the last forward was not one with COMBA_PASS_TRAIN");
  const comba_status status = comba_tensor_write_gradient(model->current->graph, model->current->loss, &scale);
  if (status != COMBA_OK) return status;
  comba_graph_backward(model->current->graph);
  model->host_is_current = false;
  model->training_run.step++; /* fresh dropout for the next forward */
  model->current = NULL;      /* what forward kept has been overwritten */
  return COMBA_OK;
}

comba_status comba_model_cost(comba_model *model, comba_pass pass, int64_t batch, int64_t length,
                              comba_graph_cost *cost) {
  comba_plan plan = {.pass = pass, .batch = batch, .length = length};
  if (model->config->kind == COMBA_KIND_VISION) plan.length = model->config->image_size;
  const comba_status status = lay_out_level(model, &plan);
  if (status == COMBA_OK) comba_graph_describe(plan.graph, cost);
  comba_graph_free(plan.graph);
  return status;
}

comba_status comba_model_reserve(comba_model *model, int64_t batch, int64_t length, comba_graph_cost *cost) {
  comba_plan *plan = NULL;
  if (model->config->kind == COMBA_KIND_VISION) length = model->config->image_size;
  const comba_status status = find_plan(model, COMBA_PASS_TRAIN, batch, length, 0, &plan);
  if (status == COMBA_OK) comba_graph_describe(plan->graph, cost);
  return status;
}

uint64_t comba_model_training_passes(const comba_model *model) {
  return model->training_run.step;
}

void comba_model_set_training_passes(comba_model *model, uint64_t passes) {
  model->training_run.step = passes;
}
