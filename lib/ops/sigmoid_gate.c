/* y = scale s, s = 1 / (1 + e^-x);  dx = scale s (1 - s) dy: what a token writes, how far it steps. As a gate it is float32 wherever it is
 * computed, where an activation would be rounded before it is used. */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

static comba_status infer(comba_signature *s) {
  if (!comba_extent_fits(&s->input[0], 0)) return comba_fail_shape(s, 0, "any shape");
  s->outputs = 1;
  s->output[0] = s->input[0];
  return COMBA_OK;
}

static real scale_of(const comba_call *call) {
  return (real)((const comba_sigmoid_gate_attributes *)call->attributes)->scale;
}

static void forward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[0].shape);
  const real *x = call->input[0].data, scale = scale_of(call);
  real *y = call->output[0].data;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t i = 0; i < count; i++) y[i] = scale * comba_sigmoid(x[i]);
}

static void backward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[0].shape);
  const real *x = call->input[0].data, *dy = call->output_gradient[0].data, scale = scale_of(call);
  real *dx = call->input_gradient[0].data;
  if (comba_gradient_absent(call, 1) || !dx) return;
  const bool accumulate = call->accumulate[0];
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t i = 0; i < count; i++) {
    const real s = comba_sigmoid(x[i]), d = scale * s * (1 - s) * dy[i];
    dx[i] = accumulate ? dx[i] + d : d;
  }
}

#define SCALE(value) (&(const comba_sigmoid_gate_attributes){value})
static const comba_case cases[] = {
    {.name = "heads", .attributes = SCALE(1), .input = {{COMBA_SHAPE(2, 33, 5)}}},
    {.name = "packets, scaled", .attributes = SCALE(2), .input = {{COMBA_SHAPE(2, 40, 8)}}},
    {.name = "saturated",
     .attributes = SCALE(1),
     .input = {{COMBA_SHAPE(61), COMBA_FILL_UNIFORM, .low = -110, .high = 110}}},
    {.name = "2048 x 16", .attributes = SCALE(1), .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_sigmoid_gate) = {
    .name = "sigmoid_gate",
    .formula = "y = scale / (1 + e^-x), in float32",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_GATE},
    .attributes_size = sizeof(comba_sigmoid_gate_attributes),
    .backward_inputs = 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
