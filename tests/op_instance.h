/* One row of the operator table with operands of its own, each between guard bands: how every test calls a kernel.
 *
 *     op_instance instance;
 *     op_instance_create(&instance, row, sizeof(float), attributes, shapes)     runs infer, allocates
 *     op_write(&instance.input[0], values)                                      operands are read and written as double
 *     op_instance_forward(&instance, true);
 *     op_read(&instance.output[0], values);
 *     op_instance_free(&instance);
 *
 * Before a call all that the kernel must write is filled with NaN: outputs, saved tensors, workspace and gradients that
 * are overwritten. So a value that a kernel leaves out, or reads too early, shows. */
#ifndef COMBA_TESTS_OP_INSTANCE_H
#define COMBA_TESTS_OP_INSTANCE_H

#include <stddef.h>

#include "core/backend.h"

typedef enum op_element { OP_FLOAT, OP_DOUBLE, OP_INT32 } op_element;

/* Values between two guard bands. */
typedef struct op_buffer {
  void *data; /* NULL: absent */
  int64_t elements;
  op_element element;
  size_t bytes;
  unsigned char *memory; /* guard, data, guard */
} op_buffer;

typedef struct op_instance {
  const comba_op *op;
  const comba_backend *backend; /* of a device, NULL: the kernels run on the host */
  comba_signature signature;    /* after infer */
  comba_call call;              /* what the kernels receive */
  comba_run run;
  void *attributes;
  op_buffer input[COMBA_MAX_INPUTS], output[COMBA_MAX_OUTPUTS], saved[COMBA_MAX_SAVED];
  op_buffer output_gradient[COMBA_MAX_OUTPUTS], input_gradient[COMBA_MAX_INPUTS];
  op_buffer forward_workspace, backward_workspace;
} op_instance;

/* `shape` has op->inputs entries, rank 0 where an optional input is left out; attributes NULL means all zero. Fails as
 * infer does; running out of memory ends the program. */
comba_status op_instance_create(op_instance *instance, const comba_op *op, size_t real_size, const void *attributes,
                                const comba_shape *shape);
void op_instance_free(op_instance *instance);

/* Bit i: input i is there and takes a gradient. Likewise for the outputs that a gradient may come from. */
uint32_t op_instance_differentiable_inputs(const op_instance *instance);
uint32_t op_instance_differentiable_outputs(const op_instance *instance);

/* With `keep` the saved tensors are written too, as before a backward pass. */
void op_instance_forward(op_instance *instance, bool keep);
/* Overwrites with NaN (indices with 0) every input and output that the row does not name in backward_inputs and
 * backward_outputs, as the graph's plan may. */
void op_instance_forget(op_instance *instance);
/* Wants the gradients of the inputs in `wanted`; those in `accumulate` are added to what input_gradient holds. The gradient
 * of an output that is not in `given` is absent. */
void op_instance_backward(op_instance *instance, uint32_t wanted, uint32_t accumulate, uint32_t given);

/* "output 0", say: the first operand whose guard band was written to; NULL if all are whole. */
const char *op_instance_damage(const op_instance *instance);

/* Operands on the instance's device, as the kernels of a pass see them; what they wrote comes back when the stage is freed. */
typedef struct op_stage op_stage;
op_stage *op_stage_create(op_instance *instance, bool backward);
const comba_call *op_stage_call(const op_stage *stage);
void op_stage_free(op_stage *stage);
/* What op_instance_forward and op_instance_backward do where the kernels run on a device. */
void op_device_call(op_instance *instance, void (*kernel)(const comba_call *call), bool backward);
/* The bfloat16 next to a value. */
double op_narrow(double value);
/* The bytes before and after a buffer, and their value: NaN as a float or double, -1 as an integer, so that reading them shows. */
enum { OP_GUARD = 256, OP_GUARD_BYTE = 0xFF };
/* Makes op_instance_damage name this buffer. */
void op_buffer_damage(op_buffer *buffer);

double op_get(const op_buffer *buffer, int64_t index);
void op_set(op_buffer *buffer, int64_t index, double value);
void op_write(op_buffer *buffer, const double *values);
void op_read(const op_buffer *buffer, double *values);
/* NaN everywhere; 0 in an index. */
void op_poison(op_buffer *buffer);

/* Memory for a test, zeroed; ends the program where there is none. */
void *op_memory(size_t bytes);

#endif
