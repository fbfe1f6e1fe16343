#include "model/parameters.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/random.h"
#include "model/orthogonal.h"

enum { PADDING = 16 };

static int64_t padded(const comba_weight *weight) {
  return (comba_shape_elements(&weight->shape) + PADDING - 1) / PADDING * PADDING;
}

int comba_weight_slab(const comba_weight *weight) {
  return weight->role <= COMBA_ROLE_EMBEDDING ? COMBA_SLAB_DECAYED : COMBA_SLAB_OTHER;
}

const comba_weight *comba_parameters_find(const comba_parameters *parameters, const char *name) {
  for (int i = 0; i < parameters->count; i++)
    if (!strcmp(parameters->weight[i].name, name)) return &parameters->weight[i];
  return NULL;
}

comba_status comba_parameters_declare(comba_parameters *parameters, const char *name, comba_shape shape,
                                      comba_role role, comba_initial initial) {
  const comba_weight *known = comba_parameters_find(parameters, name);
  if (known) {
    if (comba_shape_equal(&known->shape, &shape)) return COMBA_OK;
    char first[COMBA_SHAPE_TEXT], second[COMBA_SHAPE_TEXT];
    return comba_fail(COMBA_ERROR_ARGUMENT, "parameter '%s' is used with shapes %s and %s", name,
                      comba_shape_text(&known->shape, first), comba_shape_text(&shape, second));
  }
  if (parameters->count == parameters->capacity) {
    const int capacity = parameters->capacity ? parameters->capacity * 2 : 64;
    comba_weight *grown = realloc(parameters->weight, (size_t)capacity * sizeof *grown);
    if (!grown) return comba_fail_memory((size_t)capacity * sizeof *grown, "the list of parameters");
    parameters->weight = grown;
    parameters->capacity = capacity;
  }
  comba_weight *weight = &parameters->weight[parameters->count];
  *weight = (comba_weight){.name = strdup(name), .shape = shape, .role = role, .initial = initial};
  if (!weight->name) return comba_fail_memory(strlen(name), "a parameter's name");
  comba_slab *slab = &parameters->slab[comba_weight_slab(weight)];
  weight->offset = slab->elements;
  slab->elements += padded(weight);
  parameters->count++;
  return COMBA_OK;
}

/* More than the machine has would be granted at first, and the process killed when it fills it. */
static comba_status check_memory(const comba_parameters *parameters) {
  if (!parameters->memory->is_host) return COMBA_OK;
  const int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  int64_t elements = 0;
  for (int i = 0; i < COMBA_SLABS; i++) elements += parameters->slab[i].elements;
  const double need = 2.0 * sizeof(float) * (double)elements, have = (double)pages * (double)page;
  if (pages < 1 || page < 1 || need <= have) return COMBA_OK;
  return comba_fail(COMBA_ERROR_MEMORY,
                    "out of memory: %lld weights and their gradients take %.0f bytes, the machine has %.0f",
                    (long long)comba_parameters_elements(parameters), need, have);
}

static const char *const array_names[COMBA_ARRAYS] = {"the weights", "the gradients", "AdamW's moments",
                                                      "AdamW's moments"};

static comba_status allocate(comba_parameters *parameters, comba_array array) {
  for (int i = 0; i < COMBA_SLABS; i++) {
    comba_slab *slab = &parameters->slab[i];
    if (slab->data[array]) continue;
    const comba_device_memory *memory = parameters->memory;
    slab->data[array] = (array == COMBA_ARRAY_WEIGHT ? memory->allocate_weights : memory->allocate)(
        (size_t)slab->elements * sizeof(float), array_names[array]);
    if (!slab->data[array]) return COMBA_ERROR_MEMORY;
    if (parameters->memory->is_host) slab->host[array] = slab->data[array];
  }
  return COMBA_OK;
}

comba_status comba_parameters_allocate(comba_parameters *parameters) {
  comba_status status = check_memory(parameters);
  if (status == COMBA_OK) status = allocate(parameters, COMBA_ARRAY_WEIGHT);
  return status == COMBA_OK ? allocate(parameters, COMBA_ARRAY_GRADIENT) : status;
}

comba_status comba_parameters_allocate_moments(comba_parameters *parameters) {
  const comba_status status = allocate(parameters, COMBA_ARRAY_MOMENT1);
  return status == COMBA_OK ? allocate(parameters, COMBA_ARRAY_MOMENT2) : status;
}

static comba_status copy(comba_parameters *parameters, comba_array array, bool download) {
  const comba_device_memory *memory = parameters->memory;
  comba_status status = COMBA_OK;
  for (int i = 0; i < COMBA_SLABS && status == COMBA_OK && !memory->is_host; i++) {
    comba_slab *slab = &parameters->slab[i];
    const size_t bytes = (size_t)slab->elements * sizeof(float);
    if (!slab->host[array]) slab->host[array] = comba_allocate(bytes, array_names[array]);
    if (!slab->host[array]) return COMBA_ERROR_MEMORY;
    status = download ? memory->read(slab->host[array], slab->data[array], bytes)
                      : memory->write(slab->data[array], slab->host[array], bytes);
  }
  return status;
}

comba_status comba_parameters_upload(comba_parameters *parameters, comba_array array) {
  return copy(parameters, array, false);
}

comba_status comba_parameters_download(comba_parameters *parameters, comba_array array) {
  return copy(parameters, array, true);
}

void comba_parameters_set_ramp(comba_parameters *parameters, const char *name, comba_ramp ramp) {
  for (int i = 0; i < parameters->count; i++)
    if (strcmp(parameters->weight[i].name, name) == 0) parameters->weight[i].ramp = ramp;
}

static double draw(const comba_initial *initial, uint64_t seed, uint64_t stream, uint64_t index) {
  switch (initial->distribution) {
  case COMBA_DRAW_CONSTANT: return initial->a;
  case COMBA_DRAW_NORMAL: return initial->a * comba_random_normal(seed, stream, index);
  case COMBA_DRAW_TRUNCATED_NORMAL:
    for (uint64_t attempt = 0;; attempt++) {
      const double x = initial->a * comba_random_normal(seed, stream + attempt, index);
      if (x >= -2 && x <= 2) return x;
    }
  case COMBA_DRAW_UNIFORM: return initial->a * (2 * comba_random_uniform(seed, stream, index) - 1);
  case COMBA_DRAW_A_LOG: return log(initial->a + (16 - initial->a) * comba_random_uniform(seed, stream, index));
  case COMBA_DRAW_ORTHOGONAL:
  case COMBA_DRAW_RAMP: break; /* not by the element alone: see comba_parameters_initialize */
  case COMBA_DRAW_FORGET_BIAS: return 3 + 3 * comba_random_uniform(seed, stream, index);
  case COMBA_DRAW_DT_BIAS: {
    const double low = log(1e-3), high = log(1e-1);
    double step = exp(low + (high - low) * comba_random_uniform(seed, stream, index));
    if (step < 1e-4) step = 1e-4;
    return step + log(-expm1(-step));
  }
  }
  return 0;
}

comba_status comba_parameters_initialize(comba_parameters *parameters, uint64_t seed) {
  comba_status status = comba_parameters_download(parameters, COMBA_ARRAY_WEIGHT); /* makes the host's copy */
  for (int i = 0; i < parameters->count && status == COMBA_OK; i++) {
    const comba_weight *weight = &parameters->weight[i];
    float *data = comba_parameters_host(parameters, weight, COMBA_ARRAY_WEIGHT);
    const int64_t elements = comba_shape_elements(&weight->shape);
    const uint64_t stream = comba_random_stream(weight->name);
    const comba_ramp *ramp = &weight->ramp;
    if (weight->initial.distribution == COMBA_DRAW_ORTHOGONAL) {
      const int64_t rows = weight->shape.size[0];
      status = comba_draw_orthogonal(data, rows, elements / rows, weight->initial.a, seed, stream);
    } else if (weight->initial.distribution == COMBA_DRAW_RAMP) {
      for (int64_t k = 0; k < elements; k++) data[k] = (float)ramp->value(k, elements, ramp->a, ramp->b);
    } else {
#pragma omp parallel for
      for (int64_t k = 0; k < elements; k++) data[k] = (float)draw(&weight->initial, seed, stream, (uint64_t)k);
    }
  }
  return status == COMBA_OK ? comba_parameters_upload(parameters, COMBA_ARRAY_WEIGHT) : status;
}

comba_status comba_parameters_zero_gradient(comba_parameters *parameters) {
  comba_status status = COMBA_OK;
  for (int i = 0; i < COMBA_SLABS && status == COMBA_OK; i++)
    status = parameters->memory->zero(parameters->slab[i].data[COMBA_ARRAY_GRADIENT],
                                      (size_t)parameters->slab[i].elements * sizeof(float));
  return status;
}

void comba_parameters_release(comba_parameters *parameters) {
  for (int i = 0; i < parameters->count; i++) free(parameters->weight[i].name);
  free(parameters->weight);
  for (int i = 0; i < COMBA_SLABS; i++)
    for (int array = 0; array < COMBA_ARRAYS; array++) {
      comba_slab *slab = &parameters->slab[i];
      if (slab->host[array] != slab->data[array]) free(slab->host[array]);
      if (slab->data[array]) parameters->memory->release(slab->data[array]);
    }
  *parameters = (comba_parameters){0};
}

float *comba_parameters_data(const comba_parameters *parameters, const comba_weight *weight, comba_array array) {
  float *data = parameters->slab[comba_weight_slab(weight)].data[array];
  return data ? data + weight->offset : NULL;
}

float *comba_parameters_host(const comba_parameters *parameters, const comba_weight *weight, comba_array array) {
  float *host = parameters->slab[comba_weight_slab(weight)].host[array];
  return host ? host + weight->offset : NULL;
}

int64_t comba_parameters_elements(const comba_parameters *parameters) {
  int64_t elements = 0;
  for (int i = 0; i < parameters->count; i++) elements += comba_shape_elements(&parameters->weight[i].shape);
  return elements;
}

comba_status comba_parameters_describe(const comba_parameters *parameters, size_t index, comba_parameter *out) {
  if (index >= (size_t)parameters->count)
    return comba_fail(COMBA_ERROR_ARGUMENT, "parameter %zu: the model has %d", index, parameters->count);
  const comba_weight *weight = &parameters->weight[index];
  *out = (comba_parameter){weight->name,
                           weight->shape.rank,
                           weight->shape.size,
                           comba_shape_elements(&weight->shape),
                           comba_parameters_host(parameters, weight, COMBA_ARRAY_WEIGHT),
                           comba_parameters_host(parameters, weight, COMBA_ARRAY_GRADIENT)};
  return COMBA_OK;
}
