/* The values of a case of the operator table, and its one line of text. */
#ifndef COMBA_TESTS_OP_CASE_H
#define COMBA_TESTS_OP_CASE_H

#include "op_instance.h"

/* Variants of the CPU rows, for the bench and the suites. */
typedef struct op_variant {
  const char *name;
  const comba_op *const *op; /* indexed by comba_op_id */
  size_t real_size;
  const comba_backend *backend; /* of a device, or NULL */
  bool narrow;                  /* activations are bfloat16; so are the oracle's inputs then, and the tolerance wider */
} op_variant;

/* The float32 variants that were built and that this processor runs, the fastest last; returns how many. */
enum { OP_VARIANTS = 3 };
int op_variants(op_variant variant[OP_VARIANTS]);
/* Those of the GPU; 0 with a message stored where there is none. */
int op_device_variants(op_variant variant[OP_VARIANTS]);
/* The double-precision one. */
extern const op_variant op_oracle;

/* The values of input `input`, a pure function of operator, case and input; every real one is a float32, so that all
 * variants see the same. Release with free(). */
double *op_case_values(const comba_op *op, const comba_case *c, int input);
/* N(0, 1) for the gradient of output `output`, likewise. */
double *op_case_output_gradient(const comba_op *op, const comba_case *c, int output, int64_t elements);

comba_status op_case_create(op_instance *instance, const op_variant *variant, int id, const comba_case *c);

/* Writes the inputs of the case into the instance; `narrow`: activations rounded to bfloat16. */
void op_case_fill(op_instance *instance, const comba_case *c, bool narrow);
void op_case_fill_output_gradients(op_instance *instance, const comba_case *c, bool narrow);

/* Inputs whose gradient the case is about: there, real, and not excluded by the case. */
uint32_t op_case_wanted(const op_instance *instance, const comba_case *c);
/* Those of them whose gradient is always added to: parameters. */
uint32_t op_case_accumulated(const op_instance *instance);

/* "linear, case 'bias': (2, 33, 24) normal; (40, 24) normal; (40) normal" into `text`; returns `text`. */
enum { OP_CASE_TEXT = 1024 };
const char *op_case_text(const comba_op *op, const comba_case *c, char text[OP_CASE_TEXT]);

#endif
