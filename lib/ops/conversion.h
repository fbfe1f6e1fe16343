/* y = x under another class of operand: what widen and narrow do on the CPU, where the types of the two are one. */
#ifndef COMBA_OPS_CONVERSION_H
#define COMBA_OPS_CONVERSION_H

#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

static comba_status conversion_infer(comba_signature *s) {
  if (!comba_extent_fits(&s->input[0], 0)) return comba_fail_shape(s, 0, "any shape");
  s->outputs = 1;
  s->output[0] = s->input[0];
  return COMBA_OK;
}

static void conversion_forward(const comba_call *call) {
  const size_t bytes = (size_t)comba_shape_elements(&call->input[0].shape) * sizeof(real);
  memcpy(call->output[0].data, call->input[0].data, bytes);
}

static void conversion_backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[0].data) return;
  comba_store(call->input_gradient[0].data, call->output_gradient[0].data, comba_shape_elements(&call->input[0].shape),
              call->accumulate[0]);
}

static const comba_case conversion_cases[] = {{.name = "any", .input = {{COMBA_SHAPE(2, 33, 5)}}}, {0}};

#endif
