/* y (B,d) = x[:, T-1] of x (B,T,d); dx is dy there and zero elsewhere */
#include "core/op.h"

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[0];
  if (x->rank != 3 || x->size[1] < 1) return comba_fail_shape(s, 0, "(B, T, d) with T >= 1");
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(x->size[0], x->size[2]);
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const int64_t B = call->input[0].shape.size[0], T = call->input[0].shape.size[1], d = call->input[0].shape.size[2];
  const real *x = call->input[0].data;
  real *y = call->output[0].data;
  for (int64_t b = 0; b < B; b++) memcpy(y + b * d, x + (b * T + T - 1) * d, (size_t)d * sizeof(real));
}

static void backward(const comba_call *call) {
  const int64_t B = call->input[0].shape.size[0], T = call->input[0].shape.size[1], d = call->input[0].shape.size[2];
  const real *dy = call->output_gradient[0].data;
  real *dx = call->input_gradient[0].data;
  if (!call->accumulate[0]) memset(dx, 0, (size_t)(B * T * d) * sizeof(real));
  for (int64_t b = 0; b < B; b++)
    for (int64_t i = 0; i < d; i++) dx[(b * T + T - 1) * d + i] += dy[b * d + i];
}

static const comba_case cases[] = {{.name = "last of five", .input = {{COMBA_SHAPE(3, 5, 7)}}},
                                   {.name = "one token", .input = {{COMBA_SHAPE(2, 1, 4)}}},
                                   {0}};

const comba_op COMBA_VARIANT(comba_op_last_token) = {
    .name = "last_token",
    .formula = "y = x[:, T-1]",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
