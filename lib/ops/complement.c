/* y = 1 - e^g: what a decay of logarithm g <= 0 leaves to be written;  dg = -e^g dy */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

static comba_status infer(comba_signature *s) {
  if (!comba_extent_fits(&s->input[0], 0)) return comba_fail_shape(s, 0, "any shape");
  s->outputs = 1;
  s->output[0] = s->input[0];
  return COMBA_OK;
}

/* Exact to rounding where g is close to 0, as it is where a gate keeps nearly everything. */
static real complement(real g) {
#ifdef COMBA_REAL_DOUBLE
  return -expm1(g);
#else
  return -expm1f(g);
#endif
}

static void forward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[0].shape);
  const real *g = call->input[0].data;
  real *y = call->output[0].data;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t i = 0; i < count; i++) y[i] = complement(g[i]);
}

static void backward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[0].shape);
  const real *g = call->input[0].data, *dy = call->output_gradient[0].data;
  real *dg = call->input_gradient[0].data;
  if (comba_gradient_absent(call, 1) || !dg) return;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t i = 0; i < count; i++) {
    const real slope = -comba_exp(g[i]) * dy[i];
    dg[i] = call->accumulate[0] ? dg[i] + slope : slope;
  }
}

static const comba_case cases[] = {
    {.name = "open", .input = {{COMBA_SHAPE(2, 33, 3, 16), COMBA_FILL_UNIFORM, .low = -2, .high = 0}}},
    {.name = "all but open", .input = {{COMBA_SHAPE(61), COMBA_FILL_UNIFORM, .low = -1e-4, .high = 0}}},
    {.name = "saturated", .input = {{COMBA_SHAPE(61), COMBA_FILL_UNIFORM, .low = -100, .high = 0}}},
    {.name = "2048 x 8 x 128",
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 8, 128), COMBA_FILL_UNIFORM, .low = -1, .high = 0}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_complement) = {
    .name = "complement",
    .formula = "y = 1 - e^g",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_GATE},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
