#include "model/build.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

size_t comba_build_enter(comba_build *build, const char *format, ...) {
  const size_t length = strlen(build->prefix);
  va_list arguments;
  va_start(arguments, format);
  const int added = vsnprintf(build->prefix + length, sizeof build->prefix - length, format, arguments);
  va_end(arguments);
  if (added < 0 || length + (size_t)added + 2 > sizeof build->prefix)
    comba_graph_fail(build->graph,
                     comba_fail(COMBA_ERROR_ARGUMENT, "parameter names below '%s' are too long", build->prefix));
  else
    strcat(build->prefix, ".");
  return length;
}

void comba_build_leave(comba_build *build, size_t length) {
  build->prefix[length] = 0;
}

static bool full_name(comba_build *build, const char *name, char full[COMBA_MAX_NAME]) {
  const int length = snprintf(full, COMBA_MAX_NAME, "%s%s", build->prefix, name);
  if (length >= 0 && length < COMBA_MAX_NAME) return true;
  comba_graph_fail(build->graph,
                   comba_fail(COMBA_ERROR_ARGUMENT, "parameter name '%s%s' is too long", build->prefix, name));
  return false;
}

comba_tensor *comba_build_parameter(comba_build *build, const char *name, comba_shape shape, comba_role role,
                                    comba_initial initial) {
  char full[COMBA_MAX_NAME];
  if (comba_graph_status(build->graph) != COMBA_OK || !full_name(build, name, full)) return NULL;
  if (build->declaring) {
    const comba_status status = comba_parameters_declare(build->parameters, full, shape, role, initial);
    if (status != COMBA_OK) comba_graph_fail(build->graph, status);
    return comba_graph_parameter(build->graph, full, shape, NULL, NULL);
  }
  const comba_weight *weight = comba_parameters_find(build->parameters, full);
  if (!weight) {
    comba_graph_fail(build->graph, comba_fail(COMBA_ERROR_ARGUMENT, "parameter '%s' was not declared", full));
    return NULL;
  }
  float *data = comba_parameters_data(build->parameters, weight, COMBA_ARRAY_WEIGHT);
  float *gradient = comba_parameters_data(build->parameters, weight, COMBA_ARRAY_GRADIENT);
  return comba_graph_parameter(build->graph, full, shape, data, build->training ? gradient : NULL);
}

comba_tensor *comba_build_model_parameter(comba_build *build, const char *name, comba_shape shape, comba_role role,
                                          comba_initial initial) {
  char prefix[COMBA_MAX_NAME];
  memcpy(prefix, build->prefix, sizeof prefix);
  build->prefix[strcspn(prefix, ".") + (strchr(prefix, '.') != NULL)] = 0;
  comba_tensor *parameter = comba_build_parameter(build, name, shape, role, initial);
  memcpy(build->prefix, prefix, sizeof prefix);
  return parameter;
}

comba_tensor *comba_build_weight(comba_build *build, const char *name, comba_shape shape) {
  return comba_build_parameter(build, name, shape, COMBA_ROLE_MATRIX, build->matrix_initial);
}

comba_tensor *comba_build_residual_weight(comba_build *build, const char *name, comba_shape shape) {
  comba_initial initial = build->matrix_initial;
  if (build->config &&
      build->config->initialization == COMBA_INITIALIZATION_PAPER) /* kaiming-uniform(sqrt 5) / sqrt(2 L) */
    initial = (comba_initial){COMBA_DRAW_UNIFORM,
                              1 / sqrt((double)shape.size[1]) / sqrt(2.0 * (double)build->config->num_hidden_layers)};
  return comba_build_parameter(build, name, shape, COMBA_ROLE_MATRIX, initial);
}

comba_tensor *comba_build_vector(comba_build *build, const char *name, int64_t size, double value) {
  return comba_build_parameter(build, name, COMBA_SHAPE(size), COMBA_ROLE_VECTOR,
                               (comba_initial){COMBA_DRAW_CONSTANT, value});
}

comba_tensor *comba_build_ramp(comba_build *build, const char *name, comba_shape shape, comba_ramp ramp) {
  comba_tensor *vector =
      comba_build_parameter(build, name, shape, COMBA_ROLE_VECTOR, (comba_initial){COMBA_DRAW_RAMP, 0});
  if (vector && build->declaring) comba_parameters_set_ramp(build->parameters, vector->name, ramp);
  return vector;
}

comba_tensor *comba_build_linear(comba_build *build, const char *name, comba_tensor *x, int64_t outputs, bool bias) {
  if (!x) return NULL;
  const size_t length = comba_build_enter(build, "%s", name);
  comba_tensor *weight = comba_build_weight(build, "weight", COMBA_SHAPE(outputs, x->shape.size[x->shape.rank - 1]));
  comba_tensor *offset = bias ? comba_build_vector(build, "bias", outputs, 0) : NULL;
  comba_build_leave(build, length);
  const comba_scanned *scanned = &build->scanned;
  if (x != scanned->all) return comba_linear(build->graph, x, weight, offset);
  return comba_scan_order(build->graph, comba_linear(build->graph, scanned->once, weight, offset),
                          (comba_scan)scanned->order, scanned->height, scanned->width);
}

static comba_state *find_state(const comba_states *states, const char *name) {
  for (int i = 0; i < states->count; i++)
    if (!strcmp(states->state[i].name, name)) return &states->state[i];
  return NULL;
}

comba_tensor *comba_build_state(comba_build *build, const char *name, comba_shape shape) {
  comba_states *states = build->states;
  char full[COMBA_MAX_NAME];
  if (!states || comba_graph_status(build->graph) != COMBA_OK || !full_name(build, name, full)) return NULL;
  comba_state *state = find_state(states, full);
  if (!state && build->declaring) {
    if (states->count == states->capacity) {
      const int capacity = states->capacity ? states->capacity * 2 : 32;
      comba_state *grown = realloc(states->state, (size_t)capacity * sizeof *grown);
      if (!grown) {
        comba_graph_fail(build->graph, comba_fail_memory((size_t)capacity * sizeof *grown, "the list of states"));
        return NULL;
      }
      states->state = grown;
      states->capacity = capacity;
    }
    state = &states->state[states->count++];
    *state = (comba_state){.shape = shape};
    memcpy(state->name, full, sizeof full);
  }
  if (!state) {
    comba_graph_fail(build->graph, comba_fail(COMBA_ERROR_ARGUMENT, "state '%s' was not declared", full));
    return NULL;
  }
  return comba_graph_external(build->graph, full, COMBA_STATE, shape, state->data);
}

void comba_build_update(comba_build *build, comba_tensor *state, comba_tensor *result) {
  comba_graph_store(build->graph, result, state);
}

comba_status comba_states_allocate(comba_states *states, const comba_device_memory *memory) {
  states->memory = memory;
  for (int i = 0; i < states->count; i++) {
    comba_state *state = &states->state[i];
    state->data = memory->allocate((size_t)comba_shape_elements(&state->shape) * sizeof(float), state->name);
    if (!state->data) return COMBA_ERROR_MEMORY;
  }
  return COMBA_OK;
}

void comba_states_release(comba_states *states) {
  for (int i = 0; i < states->count; i++)
    if (states->state[i].data) states->memory->release(states->state[i].data);
  free(states->state);
  *states = (comba_states){0};
}
