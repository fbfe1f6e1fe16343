/* y (B,T,HS,V) = s x, or with `append` y (B,T,HS,V+1) = s [x, 1]; x (B,T,H,V), s (B,T,HS), whose head h reads head h / (HS/H) of x
 * ds = <dy, [x, 1]>;  dx = sum over the heads of s that read it of s dy */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, S };

static bool appends(const void *attributes) {
  return ((const comba_token_scale_attributes *)attributes)->append;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *scale = &s->input[S];
  if (!comba_extent_fits(x, 4)) return comba_fail_shape(s, X, "(B, T, H, V)");
  if (!comba_extent_fits(scale, 3) || scale->size[0] != x->size[0] || scale->size[1] != x->size[1] ||
      scale->size[2] % x->size[2])
    return comba_fail_shape(s, S, "(B, T, a multiple of H), B, T and H of x");
  s->outputs = 1;
  s->output[0] = *x;
  s->output[0].size[2] = scale->size[2];
  s->output[0].size[3] += appends(s->attributes);
  return comba_extent_fits(&s->output[0], 4) ? COMBA_OK : comba_fail_extent(s, &s->output[0]);
}

static void forward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->output[0].shape), V = comba_last(&call->input[X].shape);
  const int64_t width = V + appends(call->attributes), group = rows / comba_rows(&call->input[X].shape);
  const real *x = call->input[X].data, *s = call->input[S].data;
  real *y = call->output[0].data;
#pragma omp parallel for if (rows * V > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    comba_store_scaled(y + row * width, s[row], x + row / group * V, V, false);
    if (width > V) y[row * width + V] = s[row];
  }
}

static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[X].shape), V = comba_last(&call->input[X].shape);
  const int64_t width = V + appends(call->attributes), group = comba_rows(&call->output[0].shape) / rows;
  const real *s = call->input[S].data;
  real *dx = call->input_gradient[X].data, *ds = call->input_gradient[S].data;
  if (comba_gradient_absent(call, 2)) return;
#pragma omp parallel for if (rows * group * V > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *x = (const real *)call->input[X].data + row * V;
    for (int64_t reader = row * group; reader < (row + 1) * group; reader++) {
      const real *dy = (const real *)call->output_gradient[0].data + reader * width;
      const real sum = comba_dot(dy, x, V) + (width > V ? dy[V] : 0);
      if (ds) ds[reader] = (call->accumulate[S] ? ds[reader] : 0) + sum;
      if (dx) comba_store_scaled(dx + row * V, s[reader], dy, V, call->accumulate[X] || reader > row * group);
    }
  }
}

static const comba_token_scale_attributes append = {.append = true};

static const comba_case cases[] = {
    {.name = "scaled", .input = {{COMBA_SHAPE(2, 9, 3, 21)}, {COMBA_SHAPE(2, 9, 3)}}},
    {.name = "appended", .attributes = &append, .input = {{COMBA_SHAPE(3, 50, 2, 16)}, {COMBA_SHAPE(3, 50, 2)}}},
    {.name = "three scales a head", .input = {{COMBA_SHAPE(2, 90, 2, 24)}, {COMBA_SHAPE(2, 90, 6)}}},
    {.name = "one number", .attributes = &append, .input = {{COMBA_SHAPE(1, 1, 1, 1)}, {COMBA_SHAPE(1, 1, 1)}}},
    {.name = "2048 x 16 x 64",
     .benchmark = true,
     .attributes = &append,
     .input = {{COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(2, 1024, 16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_token_scale) = {
    .name = "token_scale",
    .formula = "y = s x, or s [x, 1]",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_GATE},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_token_scale_attributes),
    .backward_inputs = 1u << X | 1u << S,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
