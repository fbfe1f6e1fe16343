/* y = x r,  r = 1 / sqrt(sum(x^2) + epsilon);  dx = r (dy - y <y, dy>)
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
  const real *x = call->input[0].data;
  const real epsilon = (real)attributes->epsilon;
  real *y = call->output[0].data, *rstd = call->saved[0].data;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real r = 1 / comba_real_sqrt(comba_dot(x + row * d, x + row * d, d) + epsilon);
    comba_store_scaled(y + row * d, r, x + row * d, d, false);
    if (rstd) rstd[row] = r;
  }
}

static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[0].shape), d = comba_last(&call->input[0].shape);
  const real *rstd = call->saved[0].data;
  if (comba_gradient_absent(call, 1) || !call->input_gradient[0].data) return;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *y = (const real *)call->output[0].data + row * d;
    const real *dy = (const real *)call->output_gradient[0].data + row * d;
    real *dx = (real *)call->input_gradient[0].data + row * d;
    const real projection = comba_dot(y, dy, d), r = rstd[row];
    if (call->accumulate[0])
#pragma omp simd
      for (int64_t j = 0; j < d; j++) dx[j] += r * (dy[j] - y[j] * projection);
    else
#pragma omp simd
      for (int64_t j = 0; j < d; j++) dx[j] = r * (dy[j] - y[j] * projection);
  }
}

#define EPSILON(value) (&(const comba_norm_attributes){value})
static const comba_case cases[] = {
    {.name = "heads", .attributes = EPSILON(1e-6), .input = {{COMBA_SHAPE(2, 47, 3, 64)}}},
    {.name = "one row", .attributes = EPSILON(1e-6), .input = {{COMBA_SHAPE(37)}}},
    {.name = "small values, large epsilon",
     .attributes = EPSILON(0.5),
     .input = {{COMBA_SHAPE(11, 100), .scale = 0.1}}},
    {.name = "2048 x 16 x 64",
     .attributes = EPSILON(1e-6),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 16, 64)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_l2_norm) = {
    .name = "l2_norm",
    .formula = "y = x / sqrt(sum(x^2) + epsilon)",
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
