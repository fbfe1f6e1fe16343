/* y = value, of the shape that the attributes give; nothing is read and nothing flows back */
#include "ops/extent.h"
#include "ops/ops.h"

static comba_status infer(comba_signature *s) {
  const comba_constant_attributes *attributes = s->attributes;
  char text[COMBA_SHAPE_TEXT];
  if (!comba_extent_fits(&attributes->shape, 0))
    return comba_fail(COMBA_ERROR_ARGUMENT, "constant: shape is %s, expected sizes of at least 1",
                      comba_shape_text(&attributes->shape, text));
  s->outputs = 1;
  s->output[0] = attributes->shape;
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const comba_constant_attributes *attributes = call->attributes;
  const int64_t count = comba_shape_elements(&attributes->shape);
  const real value = (real)attributes->value;
  real *y = call->output[0].data;
  for (int64_t i = 0; i < count; i++) y[i] = value;
}

static const comba_constant_attributes two = {{3, {2, 33, 5}}, 2};
static const comba_case cases[] = {{.name = "gate", .attributes = &two}, {0}};

const comba_op COMBA_VARIANT(comba_op_constant) = {
    .name = "constant",
    .formula = "y = value",
    .outputs = 1,
    .output_class = {COMBA_GATE},
    .attributes_size = sizeof(comba_constant_attributes),
    .infer = infer,
    .forward = forward,
    .cases = cases,
};
