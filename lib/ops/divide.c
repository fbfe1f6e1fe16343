/* y (..., n) = x r,  r = 1 / (d + epsilon), d (..., 1);  dx = r dy,  dd = -r <y, dy>
 *
 * The backward pass reads y, so x may go. */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, DIVISOR };

static comba_status infer(comba_signature *s) {
  const comba_norm_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[X];
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, X, "(..., n)");
  comba_shape divisor = *x;
  divisor.size[divisor.rank - 1] = 1;
  if (!comba_shape_equal(&s->input[DIVISOR], &divisor))
    return comba_fail_shape(s, DIVISOR, "(..., 1), else as input 0");
  s->outputs = 1;
  s->output[0] = *x;
  return comba_infer_epsilon(s, attributes->epsilon);
}

static real reciprocal(const comba_call *call, int64_t row) {
  const comba_norm_attributes *attributes = call->attributes;
  return 1 / (((const real *)call->input[DIVISOR].data)[row] + (real)attributes->epsilon);
}

static void forward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[X].shape), n = comba_last(&call->input[X].shape);
  const real *x = call->input[X].data;
  real *y = call->output[0].data;
#pragma omp parallel for if (rows * n > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++)
    comba_store_scaled(y + row * n, reciprocal(call, row), x + row * n, n, false);
}

static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[X].shape), n = comba_last(&call->input[X].shape);
  const real *y = call->output[0].data, *dy = call->output_gradient[0].data;
  real *dx = call->input_gradient[X].data, *dd = call->input_gradient[DIVISOR].data;
  if (comba_gradient_absent(call, 2)) return;
#pragma omp parallel for if (rows * n > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real r = reciprocal(call, row);
    const real to_divisor = -r * comba_dot(y + row * n, dy + row * n, n);
    if (dx) comba_store_scaled(dx + row * n, r, dy + row * n, n, call->accumulate[X]);
    if (dd) comba_store(dd + row, &to_divisor, 1, call->accumulate[DIVISOR]);
  }
}

#define BY(...)                                                                                                        \
  { COMBA_SHAPE(__VA_ARGS__, 1), COMBA_FILL_UNIFORM, .low = 0.5, .high = 2 }
#define EPSILON(value) (&(const comba_norm_attributes){value})
static const comba_case cases[] = {
    {.name = "heads", .attributes = EPSILON(1e-10), .input = {{COMBA_SHAPE(2, 47, 3, 64)}, BY(2, 47, 3)}},
    {.name = "one row, large epsilon", .attributes = EPSILON(0.5), .input = {{COMBA_SHAPE(1, 37)}, BY(1)}},
    {.name = "negative divisor",
     .attributes = EPSILON(0),
     .input = {{COMBA_SHAPE(11, 100)}, {COMBA_SHAPE(11, 1), COMBA_FILL_UNIFORM, .low = -3, .high = -1}}},
    {.name = "2048 x 16 x 64",
     .attributes = EPSILON(1e-10),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 16, 64)}, BY(2, 1024, 16)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_divide) = {
    .name = "divide",
    .formula = "y = x / (d + epsilon), one d a row",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_norm_attributes),
    .backward_inputs = 1u << DIVISOR,
    .backward_outputs = 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
