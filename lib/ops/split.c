/* y_i (..., size_i) = the channels of x (..., d) from size_0 + ... + size_{i-1} on;  dx = the dy_i, one after the other */
#include "ops/extent.h"
#include "ops/ops.h"
#include "ops/rows.h"

static comba_status infer(comba_signature *s) {
  const comba_split_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[0];
  if (attributes->parts < 2 || attributes->parts > COMBA_MAX_OUTPUTS)
    return comba_fail(COMBA_ERROR_ARGUMENT, "split: %d parts, expected 2 or %d", attributes->parts, COMBA_MAX_OUTPUTS);
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, 0, "(..., d)");
  int64_t left = comba_last(x);
  s->outputs = attributes->parts;
  for (int i = 0; i < attributes->parts; i++) {
    if (attributes->size[i] < 1 || attributes->size[i] > left)
      return comba_fail_shape(s, 0, "(..., d) with d the sum of the parts, each at least 1");
    left -= attributes->size[i];
    s->output[i] = *x;
    s->output[i].size[x->rank - 1] = attributes->size[i];
  }
  return left ? comba_fail_shape(s, 0, "(..., d) with d the sum of the parts") : COMBA_OK;
}

static void forward(const comba_call *call) {
  const comba_split_attributes *attributes = call->attributes;
  const int64_t rows = comba_rows(&call->input[0].shape), d = comba_last(&call->input[0].shape);
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *x = (const real *)call->input[0].data + row * d;
    for (int i = 0; i < attributes->parts; i++) {
      const int64_t n = attributes->size[i];
      comba_store((real *)call->output[i].data + row * n, x, n, false);
      x += n;
    }
  }
}

static void backward(const comba_call *call) {
  const comba_split_attributes *attributes = call->attributes;
  const int64_t rows = comba_rows(&call->input[0].shape), d = comba_last(&call->input[0].shape);
  const bool accumulate = call->accumulate[0];
  if (!call->input_gradient[0].data) return;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    real *dx = (real *)call->input_gradient[0].data + row * d;
    for (int i = 0; i < attributes->parts; i++) {
      const int64_t n = attributes->size[i];
      const real *dy = call->output_gradient[i].data;
      if (dy)
        comba_store(dx, dy + row * n, n, accumulate);
      else if (!accumulate)
        memset(dx, 0, (size_t)n * sizeof(real));
      dx += n;
    }
  }
}

#define PARTS(...) (&(const comba_split_attributes){__VA_ARGS__})
static const comba_case cases[] = {
    {.name = "three parts", .attributes = PARTS(3, {5, 17, 1}), .input = {{COMBA_SHAPE(2, 33, 23)}}},
    {.name = "two parts, more than one block", .attributes = PARTS(2, {64, 66}), .input = {{COMBA_SHAPE(3, 50, 130)}}},
    {.name = "one row", .attributes = PARTS(2, {1, 1}), .input = {{COMBA_SHAPE(2)}}},
    {.name = "2048 x 1024",
     .attributes = PARTS(3, {512, 448, 64}),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_split) = {
    .name = "split",
    .formula = "y_i = a range of x's channels",
    .inputs = 1,
    .outputs = COMBA_MAX_OUTPUTS,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_split_attributes),
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
