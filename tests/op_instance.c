#include "op_instance.h"

#include <stdio.h>
#include <stdlib.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

void *op_memory(size_t bytes) {
  void *memory = comba_allocate(bytes, "a test");
  if (!memory) {
    fprintf(stderr, "%s\n", comba_last_error());
    abort();
  }
  return memory;
}

static size_t element_size(op_element element) {
  return element == OP_DOUBLE ? sizeof(double) : sizeof(float);
}

static void buffer_create(op_buffer *buffer, int64_t elements, op_element element) {
  buffer->elements = elements;
  buffer->element = element;
  buffer->bytes = (size_t)elements * element_size(element);
  buffer->memory = op_memory(buffer->bytes + 2 * OP_GUARD);
  buffer->data = buffer->memory + OP_GUARD;
  memset(buffer->memory, OP_GUARD_BYTE, OP_GUARD);
  memset(buffer->memory + OP_GUARD + buffer->bytes, OP_GUARD_BYTE, OP_GUARD);
  ASAN_POISON_MEMORY_REGION(buffer->memory, OP_GUARD);
  ASAN_POISON_MEMORY_REGION(buffer->memory + OP_GUARD + buffer->bytes, OP_GUARD);
}

static void buffer_free(op_buffer *buffer) {
  if (buffer->memory) ASAN_UNPOISON_MEMORY_REGION(buffer->memory, buffer->bytes + 2 * OP_GUARD);
  free(buffer->memory);
  memset(buffer, 0, sizeof *buffer);
}

static bool buffer_whole(const op_buffer *buffer) {
  if (!buffer->memory) return true;
  unsigned char *before = buffer->memory, *after = buffer->memory + OP_GUARD + buffer->bytes;
  bool whole = true;
  ASAN_UNPOISON_MEMORY_REGION(before, OP_GUARD);
  ASAN_UNPOISON_MEMORY_REGION(after, OP_GUARD);
  for (int i = 0; i < OP_GUARD; i++) whole &= before[i] == OP_GUARD_BYTE && after[i] == OP_GUARD_BYTE;
  ASAN_POISON_MEMORY_REGION(before, OP_GUARD);
  ASAN_POISON_MEMORY_REGION(after, OP_GUARD);
  return whole;
}

void op_buffer_damage(op_buffer *buffer) {
  ASAN_UNPOISON_MEMORY_REGION(buffer->memory, OP_GUARD);
  buffer->memory[0] = (unsigned char)~OP_GUARD_BYTE;
  ASAN_POISON_MEMORY_REGION(buffer->memory, OP_GUARD);
}

double op_get(const op_buffer *buffer, int64_t index) {
  switch (buffer->element) {
  case OP_FLOAT: return ((const float *)buffer->data)[index];
  case OP_DOUBLE: return ((const double *)buffer->data)[index];
  case OP_INT32: return ((const int32_t *)buffer->data)[index];
  }
  return NAN;
}

void op_set(op_buffer *buffer, int64_t index, double value) {
  switch (buffer->element) {
  case OP_FLOAT: ((float *)buffer->data)[index] = (float)value; break;
  case OP_DOUBLE: ((double *)buffer->data)[index] = value; break;
  case OP_INT32: ((int32_t *)buffer->data)[index] = (int32_t)value; break;
  }
}

void op_write(op_buffer *buffer, const double *values) {
  for (int64_t i = 0; i < buffer->elements; i++) op_set(buffer, i, values[i]);
}

void op_read(const op_buffer *buffer, double *values) {
  for (int64_t i = 0; i < buffer->elements; i++) values[i] = op_get(buffer, i);
}

void op_poison(op_buffer *buffer) {
  const double value = buffer->element == OP_INT32 ? 0 : NAN;
  for (int64_t i = 0; i < buffer->elements; i++) op_set(buffer, i, value);
}

static comba_view view(const op_buffer *buffer, comba_shape shape) {
  return (comba_view){buffer->data, shape};
}

comba_status op_instance_create(op_instance *instance, const comba_op *op, size_t real_size, const void *attributes,
                                const comba_shape *shape) {
  *instance = (op_instance){.op = op, .run = {.seed = 7, .step = 3}};
  const op_element real_element = real_size == sizeof(double) ? OP_DOUBLE : OP_FLOAT;
  instance->attributes = op_memory(op->attributes_size);
  if (attributes) memcpy(instance->attributes, attributes, op->attributes_size);
  comba_signature *signature = &instance->signature;
  signature->op = op->name;
  signature->attributes = instance->attributes;
  signature->inputs = op->inputs;
  signature->differentiable = op->backward;
  for (int i = 0; i < op->inputs; i++) signature->input[i] = shape[i];
  const comba_status status = op->infer(signature);
  if (status != COMBA_OK) {
    op_instance_free(instance);
    return status;
  }

  comba_call *call = &instance->call;
  call->attributes = instance->attributes;
  call->run = &instance->run;
  for (int i = 0; i < op->inputs; i++) {
    if (!shape[i].rank) continue;
    const bool index = op->input_class[i] == COMBA_INDEX;
    buffer_create(&instance->input[i], comba_shape_elements(&shape[i]), index ? OP_INT32 : real_element);
    call->input[i] = view(&instance->input[i], shape[i]);
    call->input_gradient[i].shape = shape[i];
    if (op->backward && !index) buffer_create(&instance->input_gradient[i], instance->input[i].elements, real_element);
  }
  for (int i = 0; i < signature->outputs; i++) {
    const int64_t elements = comba_shape_elements(&signature->output[i]);
    buffer_create(&instance->output[i], elements, real_element);
    call->output[i] = view(&instance->output[i], signature->output[i]);
    call->output_gradient[i].shape = signature->output[i];
    if (op->backward) buffer_create(&instance->output_gradient[i], elements, real_element);
  }
  for (int i = 0; i < signature->saved; i++) {
    buffer_create(&instance->saved[i], comba_shape_elements(&signature->saved_shape[i]), real_element);
    call->saved[i].shape = signature->saved_shape[i];
  }
  buffer_create(&instance->forward_workspace, signature->forward_workspace, real_element);
  buffer_create(&instance->backward_workspace, signature->backward_workspace, real_element);
  return COMBA_OK;
}

void op_instance_free(op_instance *instance) {
  for (int i = 0; i < COMBA_MAX_INPUTS; i++) {
    buffer_free(&instance->input[i]);
    buffer_free(&instance->input_gradient[i]);
  }
  for (int i = 0; i < COMBA_MAX_OUTPUTS; i++) {
    buffer_free(&instance->output[i]);
    buffer_free(&instance->output_gradient[i]);
  }
  for (int i = 0; i < COMBA_MAX_SAVED; i++) buffer_free(&instance->saved[i]);
  buffer_free(&instance->forward_workspace);
  buffer_free(&instance->backward_workspace);
  free(instance->attributes);
  instance->attributes = NULL;
}

uint32_t op_instance_differentiable_inputs(const op_instance *instance) {
  uint32_t mask = 0;
  for (int i = 0; i < instance->op->inputs; i++)
    if (instance->input_gradient[i].data) mask |= 1u << i;
  return mask;
}

uint32_t op_instance_differentiable_outputs(const op_instance *instance) {
  uint32_t mask = 0;
  for (int i = 0; i < instance->signature.outputs; i++)
    if (instance->output_gradient[i].data) mask |= 1u << i;
  return mask & ~instance->op->constant_outputs;
}

void op_instance_forward(op_instance *instance, bool keep) {
  comba_call *call = &instance->call;
  for (int i = 0; i < instance->signature.outputs; i++) op_poison(&instance->output[i]);
  for (int i = 0; i < instance->signature.saved; i++) {
    op_poison(&instance->saved[i]);
    call->saved[i].data = keep ? instance->saved[i].data : NULL;
  }
  op_poison(&instance->forward_workspace);
  call->workspace = instance->forward_workspace.data;
  if (instance->backend)
    op_device_call(instance, instance->op->forward, false);
  else
    instance->op->forward(call);
}

void op_instance_forget(op_instance *instance) {
  const comba_op *op = instance->op;
  for (int i = 0; i < op->inputs; i++)
    if (!(op->backward_inputs >> i & 1)) op_poison(&instance->input[i]);
  for (int i = 0; i < instance->signature.outputs; i++)
    if (!(op->backward_outputs >> i & 1)) op_poison(&instance->output[i]);
}

void op_instance_backward(op_instance *instance, uint32_t wanted, uint32_t accumulate, uint32_t given) {
  comba_call *call = &instance->call;
  for (int i = 0; i < instance->signature.outputs; i++)
    call->output_gradient[i].data = given >> i & 1 ? instance->output_gradient[i].data : NULL;
  for (int i = 0; i < instance->op->inputs; i++) {
    call->accumulate[i] = accumulate >> i & 1;
    call->input_gradient[i].data = wanted >> i & 1 ? instance->input_gradient[i].data : NULL;
    if (!call->accumulate[i] && call->input[i].data != instance->input_gradient[i].data)
      op_poison(&instance->input_gradient[i]);
  }
  op_poison(&instance->backward_workspace);
  call->workspace = instance->backward_workspace.data;
  if (instance->backend)
    op_device_call(instance, instance->op->backward, true);
  else
    instance->op->backward(call);
}

static const char *damaged(const op_buffer *buffer, int count, const char *what) {
  static char text[64];
  for (int i = 0; i < count; i++)
    if (!buffer_whole(&buffer[i])) {
      snprintf(text, sizeof text, "%s %d", what, i);
      return text;
    }
  return NULL;
}

const char *op_instance_damage(const op_instance *instance) {
  const char *where = damaged(instance->input, COMBA_MAX_INPUTS, "input");
  if (!where) where = damaged(instance->output, COMBA_MAX_OUTPUTS, "output");
  if (!where) where = damaged(instance->saved, COMBA_MAX_SAVED, "saved tensor");
  if (!where) where = damaged(instance->output_gradient, COMBA_MAX_OUTPUTS, "gradient of output");
  if (!where) where = damaged(instance->input_gradient, COMBA_MAX_INPUTS, "gradient of input");
  if (!where) where = damaged(&instance->forward_workspace, 1, "forward workspace");
  if (!where) where = damaged(&instance->backward_workspace, 1, "backward workspace");
  return where;
}
