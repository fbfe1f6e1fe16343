/* Values of tensors into and out of a backend's memory. Activations may be bfloat16 there; the host has float32. */
#include <stdlib.h>
#include <string.h>

#include "core/graph_private.h"

/* Nearest, ties to even; NaN stays NaN. */
static uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static float from_bfloat16(uint16_t value) {
  const uint32_t bits = (uint32_t)value << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

static bool is_narrow(const comba_graph *graph, const comba_tensor *tensor) {
  return graph->backend->size[tensor->kind] == sizeof(uint16_t);
}

static comba_status write(const comba_graph *graph, const comba_tensor *tensor, void *to, const void *values) {
  const comba_device_memory *memory = graph->backend->memory;
  const int64_t count = comba_shape_elements(&tensor->shape);
  if (!is_narrow(graph, tensor)) return memory->write(to, values, (size_t)count * sizeof(float));
  uint16_t *narrow = comba_allocate((size_t)count * sizeof *narrow, "a tensor's values");
  if (!narrow) return COMBA_ERROR_MEMORY;
#pragma omp parallel for
  for (int64_t i = 0; i < count; i++) narrow[i] = to_bfloat16(((const float *)values)[i]);
  const comba_status status = memory->write(to, narrow, (size_t)count * sizeof *narrow);
  free(narrow);
  return status;
}

static comba_status read(const comba_graph *graph, const comba_tensor *tensor, const void *from, void *values) {
  const comba_device_memory *memory = graph->backend->memory;
  const int64_t count = comba_shape_elements(&tensor->shape);
  if (!is_narrow(graph, tensor)) return memory->read(values, from, (size_t)count * sizeof(float));
  uint16_t *narrow = comba_allocate((size_t)count * sizeof *narrow, "a tensor's values");
  if (!narrow) return COMBA_ERROR_MEMORY;
  const comba_status status = memory->read(narrow, from, (size_t)count * sizeof *narrow);
  if (status == COMBA_OK)
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++) ((float *)values)[i] = from_bfloat16(narrow[i]);
  free(narrow);
  return status;
}

comba_status comba_tensor_write(const comba_graph *graph, comba_tensor *tensor, const void *values) {
  return write(graph, tensor, tensor->data, values);
}

comba_status comba_tensor_read(const comba_graph *graph, const comba_tensor *tensor, void *values) {
  return read(graph, tensor, tensor->data, values);
}

comba_status comba_tensor_write_gradient(const comba_graph *graph, comba_tensor *tensor, const float *values) {
  return write(graph, tensor, tensor->gradient, values);
}

comba_status comba_tensor_read_gradient(const comba_graph *graph, const comba_tensor *tensor, float *values) {
  return read(graph, tensor, tensor->gradient, values);
}
