/* Calling a kernel whose operands live on a device: every buffer goes there, guard bands and all, and what the kernel may write
 * comes back. */
#include <stdio.h>
#include <stdlib.h>

#include "op_instance.h"

enum { MAX_BUFFERS = 2 * (COMBA_MAX_INPUTS + COMBA_MAX_OUTPUTS) + COMBA_MAX_SAVED + 2 };

typedef struct staged {
  op_buffer *buffer;
  bool narrow, written;
  size_t bytes;         /* on the device, guards included */
  unsigned char *image; /* what was sent */
  unsigned char *device;
} staged;

struct op_stage {
  const comba_device_memory *memory;
  int count;
  staged of[MAX_BUFFERS];
  comba_run *run;
  comba_call call;
};

static void check(comba_status status) {
  if (status == COMBA_OK) return;
  fprintf(stderr, "%s\n", comba_last_error());
  abort();
}

/* nearest, ties to even */
static uint16_t narrowed(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static float widened(uint16_t value) {
  const uint32_t bits = (uint32_t)value << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

double op_narrow(double value) {
  return widened(narrowed((float)value));
}

static void send(op_stage *s, op_buffer *buffer, bool narrow, bool weights, bool written) {
  if (!buffer->memory) return;
  staged *to = &s->of[s->count++];
  const size_t size = narrow ? sizeof(uint16_t) : sizeof(float);
  *to = (staged){.buffer = buffer, .narrow = narrow, .written = written};
  to->bytes = (size_t)buffer->elements * size + 2 * OP_GUARD;
  to->image = op_memory(to->bytes);
  memset(to->image, OP_GUARD_BYTE, to->bytes);
  if (narrow)
    for (int64_t i = 0; i < buffer->elements; i++)
      ((uint16_t *)(to->image + OP_GUARD))[i] = narrowed(((const float *)buffer->data)[i]);
  else
    memcpy(to->image + OP_GUARD, buffer->data, buffer->bytes);
  to->device = (weights ? s->memory->allocate_weights : s->memory->allocate)(to->bytes, "a test");
  if (!to->device) check(COMBA_ERROR_MEMORY);
  check(s->memory->write(to->device, to->image, to->bytes));
}

/* Into the buffer what the kernel wrote; a change where it should not write damages the guard, which the caller looks at. */
static void receive(op_stage *s, staged *from) {
  unsigned char *found = op_memory(from->bytes);
  op_buffer *buffer = from->buffer;
  check(s->memory->read(found, from->device, from->bytes));
  bool whole = from->written || !memcmp(found, from->image, from->bytes);
  for (size_t i = 0; i < OP_GUARD; i++)
    whole &= found[i] == OP_GUARD_BYTE && found[from->bytes - 1 - i] == OP_GUARD_BYTE;
  if (from->written && from->narrow)
    for (int64_t i = 0; i < buffer->elements; i++)
      ((float *)buffer->data)[i] = widened(((const uint16_t *)(found + OP_GUARD))[i]);
  else if (from->written)
    memcpy(buffer->data, found + OP_GUARD, buffer->bytes);
  if (!whole) op_buffer_damage(buffer);
  s->memory->release(from->device);
  free(from->image);
  free(found);
}

static void *address(const op_stage *s, const void *data) {
  for (int i = 0; i < s->count && data; i++)
    if (s->of[i].buffer->data == data) return s->of[i].device + OP_GUARD;
  return NULL;
}

static void redirect(const op_stage *s, comba_view *views, int count) {
  for (int i = 0; i < count; i++) views[i].data = address(s, views[i].data);
}

op_stage *op_stage_create(op_instance *instance, bool backward) {
  const comba_backend *backend = instance->backend;
  const comba_op *op = instance->op;
  const bool narrow = backend->size[COMBA_ACTIVATION] == sizeof(uint16_t);
  op_stage *s = op_memory(sizeof *s);
  s->memory = backend->memory;
  for (int i = 0; i < op->inputs; i++) {
    const bool activation = op->input_class[i] == COMBA_ACTIVATION, parameter = op->input_class[i] == COMBA_PARAMETER;
    send(s, &instance->input[i], narrow && activation, parameter, false);
    if (backward) send(s, &instance->input_gradient[i], narrow && activation, false, true);
  }
  for (int i = 0; i < instance->signature.outputs; i++) {
    const bool activation = op->output_class[i] == COMBA_ACTIVATION;
    send(s, &instance->output[i], narrow && activation, false, !backward);
    if (backward) send(s, &instance->output_gradient[i], narrow && activation, false, false);
  }
  for (int i = 0; i < instance->signature.saved; i++) send(s, &instance->saved[i], false, false, !backward);
  send(s, backward ? &instance->backward_workspace : &instance->forward_workspace, false, false, true);

  s->run = s->memory->allocate(sizeof *s->run, "a test");
  check(s->run ? s->memory->write(s->run, &instance->run, sizeof *s->run) : COMBA_ERROR_MEMORY);
  s->call = instance->call;
  s->call.run = s->run;
  redirect(s, s->call.input, COMBA_MAX_INPUTS);
  redirect(s, s->call.output, COMBA_MAX_OUTPUTS);
  redirect(s, s->call.saved, COMBA_MAX_SAVED);
  redirect(s, s->call.output_gradient, COMBA_MAX_OUTPUTS);
  redirect(s, s->call.input_gradient, COMBA_MAX_INPUTS);
  s->call.workspace = address(s, s->call.workspace);
  return s;
}

const comba_call *op_stage_call(const op_stage *s) {
  return &s->call;
}

void op_stage_free(op_stage *s) {
  for (int i = 0; i < s->count; i++) receive(s, &s->of[i]);
  s->memory->release(s->run);
  free(s);
}

void op_device_call(op_instance *instance, void (*kernel)(const comba_call *call), bool backward) {
  op_stage *s = op_stage_create(instance, backward);
  kernel(op_stage_call(s));
  op_stage_free(s);
}
