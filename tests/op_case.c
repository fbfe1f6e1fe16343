#ifdef HAVE_CONFIG_H
#include "config.h"
#endif
#include "op_case.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/backend.h"
#include "core/random.h"

/* ---- Variants ------------------------------------------------------------------------------------------------------ */

extern const comba_op *const comba_op_table_oracle[], *const comba_op_table_baseline[];
const op_variant op_oracle = {.name = "oracle", .op = comba_op_table_oracle, .real_size = sizeof(double)};
#ifdef COMBA_HAVE_X86_VARIANTS
extern const comba_op *const comba_op_table_v3[], *const comba_op_table_v4[];
#endif

#define HOST_VARIANT(name_, table)                                                                                     \
  (op_variant) {                                                                                                       \
    .name = name_, .op = table, .real_size = sizeof(float)                                                             \
  }
int op_variants(op_variant variant[OP_VARIANTS]) {
  int count = 0;
  variant[count++] = HOST_VARIANT("baseline", comba_op_table_baseline);
#ifdef COMBA_HAVE_X86_VARIANTS
  const comba_op *const *fastest = comba_backend_cpu()->op;
  if (fastest != comba_op_table_baseline) variant[count++] = HOST_VARIANT("v3", comba_op_table_v3);
  if (fastest == comba_op_table_v4) variant[count++] = HOST_VARIANT("v4", comba_op_table_v4);
#endif
  return count;
}

int op_device_variants(op_variant variant[OP_VARIANTS]) {
#ifdef HAVE_CUDA
  for (int narrow = 0; narrow < 2; narrow++) {
    const comba_backend *backend;
    if (comba_backend_cuda(&backend, narrow) != COMBA_OK) return 0;
    variant[narrow] = (op_variant){
        .name = backend->name, .op = backend->op, .real_size = sizeof(float), .backend = backend, .narrow = narrow};
  }
  return 2;
#else
  (void)variant;
  comba_fail(COMBA_ERROR_UNSUPPORTED, "this build has no CUDA");
  return 0;
#endif
}

/* ---- Values -------------------------------------------------------------------------------------------------------- */

static uint64_t stream_of(const comba_op *op, const comba_case *c, int operand) {
  return comba_random_stream(op->name) + 31 * comba_random_stream(c->name) + (uint64_t)operand;
}

static void normalize_rows(double *values, int64_t rows, int64_t length) {
  for (int64_t row = 0; row < rows; row++) {
    double sum = 0;
    for (int64_t i = 0; i < length; i++) sum += values[row * length + i] * values[row * length + i];
    for (int64_t i = 0; i < length; i++) values[row * length + i] /= sqrt(sum);
  }
}

double *op_case_values(const comba_op *op, const comba_case *c, int input) {
  const comba_case_input *from = &c->input[input];
  const int64_t elements = comba_shape_elements(&from->shape);
  const uint64_t stream = stream_of(op, c, input);
  double *values = op_memory((size_t)elements * sizeof *values);
  for (int64_t i = 0; i < elements; i++) switch (from->fill) {
    case COMBA_FILL_NORMAL:
      values[i] = (from->scale ? from->scale : 1) * comba_random_normal(1, stream, (uint64_t)i);
      break;
    case COMBA_FILL_UNIT: values[i] = comba_random_normal(1, stream, (uint64_t)i); break;
    case COMBA_FILL_UNIFORM:
      values[i] = from->low + (from->high - from->low) * comba_random_uniform(1, stream, (uint64_t)i);
      break;
    case COMBA_FILL_INDEX:
      values[i] = from->low + (double)comba_random_below(1, stream, (uint64_t)i, (uint64_t)(from->high - from->low));
      break;
    case COMBA_FILL_VALUES: values[i] = from->values[i]; break;
    }
  const int64_t length = from->shape.size[from->shape.rank - 1];
  if (from->fill == COMBA_FILL_UNIT) normalize_rows(values, elements / length, length);
  for (int64_t i = 0; i < elements; i++) values[i] = (float)values[i];
  return values;
}

double *op_case_output_gradient(const comba_op *op, const comba_case *c, int output, int64_t elements) {
  double *values = op_memory((size_t)elements * sizeof *values);
  const uint64_t stream = stream_of(op, c, COMBA_MAX_INPUTS + output);
  for (int64_t i = 0; i < elements; i++) values[i] = (float)comba_random_normal(1, stream, (uint64_t)i);
  return values;
}

comba_status op_case_create(op_instance *instance, const op_variant *variant, int id, const comba_case *c) {
  comba_shape shape[COMBA_MAX_INPUTS];
  for (int i = 0; i < COMBA_MAX_INPUTS; i++) shape[i] = c->input[i].shape;
  const comba_status status = op_instance_create(instance, variant->op[id], variant->real_size, c->attributes, shape);
  instance->backend = variant->backend;
  return status;
}

static void write(op_buffer *buffer, double *values, bool narrow) {
  for (int64_t i = 0; i < buffer->elements && narrow; i++) values[i] = op_narrow(values[i]);
  op_write(buffer, values);
  free(values);
}

void op_case_fill(op_instance *instance, const comba_case *c, bool narrow) {
  for (int i = 0; i < instance->op->inputs; i++) {
    if (!instance->input[i].data) continue;
    write(&instance->input[i], op_case_values(instance->op, c, i),
          narrow && instance->op->input_class[i] == COMBA_ACTIVATION);
  }
}

void op_case_fill_output_gradients(op_instance *instance, const comba_case *c, bool narrow) {
  for (int i = 0; i < instance->signature.outputs; i++) {
    write(&instance->output_gradient[i], op_case_output_gradient(instance->op, c, i, instance->output[i].elements),
          narrow && instance->op->output_class[i] == COMBA_ACTIVATION);
  }
}

uint32_t op_case_wanted(const op_instance *instance, const comba_case *c) {
  uint32_t mask = op_instance_differentiable_inputs(instance);
  for (int i = 0; i < instance->op->inputs; i++)
    if (c->input[i].no_gradient) mask &= ~(1u << i);
  return mask;
}

uint32_t op_case_accumulated(const op_instance *instance) {
  uint32_t mask = 0;
  for (int i = 0; i < instance->op->inputs; i++)
    if (instance->op->input_class[i] == COMBA_PARAMETER) mask |= 1u << i;
  return mask;
}

/* ---- Text ---------------------------------------------------------------------------------------------------------- */

enum { VALUES_SHOWN = 12 };

static void append(char text[OP_CASE_TEXT], const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(char text[OP_CASE_TEXT], const char *format, ...) {
  const size_t used = strlen(text);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, OP_CASE_TEXT - used, format, arguments);
  va_end(arguments);
}

const char *op_case_text(const comba_op *op, const comba_case *c, char text[OP_CASE_TEXT]) {
  text[0] = 0;
  append(text, "%s, case '%s':", op->name, c->name);
  for (int i = 0; i < op->inputs; i++) {
    const comba_case_input *input = &c->input[i];
    char shape[COMBA_SHAPE_TEXT];
    append(text, "%s ", i ? ";" : "");
    if (!input->shape.rank) {
      append(text, "absent");
      continue;
    }
    append(text, "%s", comba_shape_text(&input->shape, shape));
    switch (input->fill) {
    case COMBA_FILL_NORMAL: append(text, " normal * %g", input->scale ? input->scale : 1); break;
    case COMBA_FILL_UNIFORM: append(text, " in [%g, %g]", input->low, input->high); break;
    case COMBA_FILL_INDEX: append(text, " integers in [%g, %g)", input->low, input->high); break;
    case COMBA_FILL_UNIT: append(text, " unit rows"); break;
    case COMBA_FILL_VALUES:
      for (int64_t k = 0, n = comba_shape_elements(&input->shape); k < n && k < VALUES_SHOWN; k++)
        append(text, "%c%d", k ? ' ' : '=', input->values[k]);
      if (comba_shape_elements(&input->shape) > VALUES_SHOWN) append(text, " ...");
      break;
    }
  }
  return text;
}
