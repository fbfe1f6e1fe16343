/* An operator is a row in a table: shape rule, kernels, cost, and the cases that the test bench runs.
 *
 * A file lib/ops/NAME.c or lib/scan/NAME.c defines one row,
 *     const comba_op COMBA_VARIANT(comba_op_NAME) = {...};
 * and lib/ops/list.h names it. The bench in tests/ then checks it (gradients by central differences in double, float32
 * against the oracle, any number of threads, saturated values) and times it, without a test being written for it.
 *
 * Kernels see dense row-major arrays. They are called with shapes that `infer` has accepted, so they check nothing. */
#ifndef COMBA_CORE_OP_H
#define COMBA_CORE_OP_H

#include <stdbool.h>
#include <stdint.h>

#include "core/real.h"
#include "core/status.h"

enum { COMBA_MAX_RANK = 5, COMBA_MAX_INPUTS = 16, COMBA_MAX_OUTPUTS = 3, COMBA_MAX_SAVED = 6 };

/* What an operand is, which decides its type: activations are float32 on the CPU and bf16 or float32 on a GPU; parameters,
 * gates and states are float32 everywhere; indices are int32. In the oracle all but indices are double. */
typedef enum comba_class {
  COMBA_ACTIVATION,
  COMBA_PARAMETER,
  COMBA_GATE,
  COMBA_STATE,
  COMBA_INDEX,
} comba_class;

typedef struct comba_shape {
  int rank;
  int64_t size[COMBA_MAX_RANK]; /* outermost first */
} comba_shape;

#define COMBA_SHAPE_COUNT_(a1, a2, a3, a4, a5, n, ...) n
/* COMBA_SHAPE(B, T, d) is a comba_shape of rank 3. */
#define COMBA_SHAPE(...) ((comba_shape){COMBA_SHAPE_COUNT_(__VA_ARGS__, 5, 4, 3, 2, 1, 0), {__VA_ARGS__}})

int64_t comba_shape_elements(const comba_shape *shape);
bool comba_shape_equal(const comba_shape *a, const comba_shape *b);
/* "(2, 64, 3)" into `text`; returns `text`. */
enum { COMBA_SHAPE_TEXT = 128 };
const char *comba_shape_text(const comba_shape *shape, char text[COMBA_SHAPE_TEXT]);

/* What `infer` reads and fills in. Inputs that the caller left out (optional ones) have rank 0. */
typedef struct comba_signature {
  const char *op;
  const void *attributes;
  int inputs;
  comba_shape input[COMBA_MAX_INPUTS];
  bool differentiable; /* backward may be called */
  /* filled in by `infer` */
  int outputs;
  comba_shape output[COMBA_MAX_OUTPUTS];
  int saved; /* tensors that forward writes and backward reads; not allocated where there is no backward */
  comba_shape saved_shape[COMBA_MAX_SAVED];
  bool saved_optional;     /* backward may find them absent and makes them in its workspace */
  uint32_t spared_outputs; /* bit i: of the row's backward_outputs, not read with these attributes after all */
  int64_t forward_workspace, backward_workspace; /* in reals; scratch that lives during one call */
  double forward_flops, backward_flops;          /* a multiply-add counts two; 0: element-wise, bound by bytes */
} comba_signature;

/* COMBA_ERROR_ARGUMENT with "OP: input N has shape (..), expected TEXT". */
comba_status comba_fail_shape(const comba_signature *signature, int input, const char *expected);

typedef struct comba_view {
  void *data; /* NULL: absent */
  comba_shape shape;
} comba_view;

/* What changes from step to step; kernels read it when they run, so that a captured step never has to be rebuilt. */
typedef struct comba_run {
  uint64_t seed; /* of dropout, drop path and random scans */
  uint64_t step; /* micro-step: counts backward passes, so that each training pass draws anew */
} comba_run;

typedef struct comba_call {
  const void *attributes;
  const comba_run *run;
  comba_view input[COMBA_MAX_INPUTS];
  comba_view
      output[COMBA_MAX_OUTPUTS]; /* one that nobody reads has data all the same, but for the row's optional_outputs */
  comba_view saved[COMBA_MAX_SAVED]; /* data NULL in a forward pass without backward */
  void *workspace;
  /* backward only */
  comba_view output_gradient[COMBA_MAX_OUTPUTS]; /* data NULL: this gradient is zero */
  comba_view input_gradient[COMBA_MAX_INPUTS];   /* data NULL: not wanted */
  bool accumulate[COMBA_MAX_INPUTS];             /* add to the gradient (always so for parameters), else overwrite it */
} comba_call;

/* How the bench fills an input. */
typedef enum comba_fill {
  COMBA_FILL_NORMAL = 0, /* N(0,1) times scale (0 means 1) */
  COMBA_FILL_UNIFORM,    /* in [low, high] */
  COMBA_FILL_INDEX,      /* integers in [low, high) */
  COMBA_FILL_UNIT,       /* N(0,1), then each row of the last dimension scaled to length 1 */
  COMBA_FILL_VALUES,     /* the integers in `values`, as many as the shape holds */
} comba_fill;

typedef struct comba_case_input {
  comba_shape shape; /* rank 0: this optional input is left out */
  comba_fill fill;
  double scale, low, high;
  const int32_t *values;
  bool no_gradient; /* not checked by central differences (a state that is updated in place, say) */
} comba_case_input;

typedef struct comba_case {
  const char *name;       /* NULL ends the list */
  const void *attributes; /* NULL: all zero */
  comba_case_input input[COMBA_MAX_INPUTS];
  double tolerance; /* float32 against the oracle, relative (Frobenius) a tensor; 0 means 1e-5 */
  bool benchmark;   /* timed by `make bench`; not run as a test */
} comba_case;

typedef struct comba_op {
  const char *name;
  const char *formula;      /* one line, for docs and `info` */
  int inputs, outputs;      /* largest numbers */
  uint32_t optional_inputs; /* bit i: input i may be absent */
  comba_class input_class[COMBA_MAX_INPUTS];
  comba_class output_class[COMBA_MAX_OUTPUTS];
  size_t attributes_size; /* of the struct that the builder copies; 0: none */
  /* Which values backward reads: bit i = input i / output i. The plan frees the others early. */
  uint32_t backward_inputs, backward_outputs;
  uint32_t equal_gradients; /* bit i: the gradient of input i is the same as of others so marked; one may do for all */
  uint32_t
      gradient_over_input; /* bit i: each element of input i is read before the gradient's there is written; both may be one memory */
  uint32_t optional_outputs; /* bit i: forward leaves output i out where its data is NULL, since nobody reads it */
  uint32_t constant_outputs; /* bit i: no gradient comes from output i (a loss of each row for reports, say) */
  comba_status (*infer)(comba_signature *signature);
  void (*forward)(const comba_call *call);
  void (*backward)(const comba_call *call); /* NULL: not differentiable */
  const comba_case *cases;
} comba_op;

#endif
