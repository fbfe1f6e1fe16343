/* y = x r,  r = 1 / (sum(x) + epsilon), or 0 where the divisor is 0;  dx = r (dy - <y, dy>)
 *
 * The backward pass reads y, so x may go. Saved: r (rows). */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

static comba_status infer(comba_signature *s) {
  const comba_norm_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[0];
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, 0, "(..., d)");
  s->outputs = 1;
  s->output[0] = *x;
  s->saved = 1;
  s->saved_shape[0] = COMBA_SHAPE(comba_rows(x));
  return comba_infer_epsilon(s, attributes->epsilon);
}

static void forward(const comba_call *call) {
  const comba_norm_attributes *attributes = call->attributes;
  const int64_t rows = comba_rows(&call->input[0].shape), d = comba_last(&call->input[0].shape);
  real *reciprocals = call->saved[0].data;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *x = (const real *)call->input[0].data + row * d;
    real sum = (real)attributes->epsilon;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < d; j++) sum += x[j];
    const real r = sum == 0 ? 0 : 1 / sum;
    comba_store_scaled((real *)call->output[0].data + row * d, r, x, d, false);
    if (reciprocals) reciprocals[row] = r;
  }
}

static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[0].shape), d = comba_last(&call->input[0].shape);
  const real *reciprocals = call->saved[0].data;
  if (comba_gradient_absent(call, 1) || !call->input_gradient[0].data) return;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *dy = (const real *)call->output_gradient[0].data + row * d;
    real *dx = (real *)call->input_gradient[0].data + row * d;
    const real r = reciprocals[row], mean = comba_dot((const real *)call->output[0].data + row * d, dy, d);
    if (call->accumulate[0])
      for (int64_t j = 0; j < d; j++) dx[j] += r * (dy[j] - mean);
    else
      for (int64_t j = 0; j < d; j++) dx[j] = r * (dy[j] - mean);
  }
}

#define EPSILON(value) (&(const comba_norm_attributes){value})
#define POSITIVE COMBA_FILL_UNIFORM, .low = 0.1, .high = 1
static const comba_case cases[] = {
    {.name = "heads", .input = {{COMBA_SHAPE(2, 47, 3, 64), POSITIVE}}},
    {.name = "one row, epsilon", .attributes = EPSILON(0.5), .input = {{COMBA_SHAPE(37), POSITIVE}}},
    {.name = "negative sum", .input = {{COMBA_SHAPE(11, 100), COMBA_FILL_UNIFORM, .low = -1, .high = 0.2}}},
    {.name = "all zero", .input = {{COMBA_SHAPE(3, 5), COMBA_FILL_UNIFORM, .no_gradient = true}}},
    {.name = "2048 x 16 x 64", .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 16, 64), POSITIVE}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_sum_norm) = {
    .name = "sum_norm",
    .formula = "y = x / (sum(x) + epsilon)",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_norm_attributes),
    .backward_outputs = 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
