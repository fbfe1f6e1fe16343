/* y = x + (z - x) w;  dx = (1 - w) dy;  dz = w dy;  dw = (z - x) dy, summed over the rows where w is one row for all */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, Z, W };

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *w = &s->input[W];
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, X, "(..., d)");
  if (!comba_shape_equal(x, &s->input[Z])) return comba_fail_shape(s, Z, "the shape of input 0");
  if (!comba_is_row_or_all(w, x)) return comba_fail_shape(s, W, "(d) or the shape of input 0");
  s->outputs = 1;
  s->output[0] = *x;
  s->backward_workspace = 2 * comba_row_blocks(comba_rows(x), comba_last(x)) * comba_last(x);
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const int64_t step = comba_row_step(&call->input[W].shape);
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *x = (const real *)call->input[X].data + row * d, *z = (const real *)call->input[Z].data + row * d;
    const real *w = (const real *)call->input[W].data + row * step;
    real *y = (real *)call->output[0].data + row * d;
#pragma omp simd
    for (int64_t i = 0; i < d; i++) y[i] = x[i] + (z[i] - x[i]) * w[i];
  }
}

static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const int64_t step = comba_row_step(&call->input[W].shape), blocks = comba_row_blocks(rows, d);
  real *dx = call->input_gradient[X].data, *dz = call->input_gradient[Z].data, *dw = call->input_gradient[W].data;
  real *partial = call->workspace, *scratch = partial + blocks * d; /* (blocks, d) each */
  if (comba_gradient_absent(call, 3)) return;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(rows, blocks, block + 1);
    real *restrict sum = partial + block * d, *restrict gradient = scratch + block * d;
    memset(sum, 0, (size_t)d * sizeof(real));
    for (int64_t row = comba_block_start(rows, blocks, block); row < end; row++) {
      const int64_t at = row * d;
      const real *x = (const real *)call->input[X].data + at, *z = (const real *)call->input[Z].data + at;
      const real *w = (const real *)call->input[W].data + row * step;
      const real *dy = (const real *)call->output_gradient[0].data + at;
      /* in the order of the inputs: lerp(x, x, w) has one gradient for both, which the second adds to */
      for (int64_t i = 0; i < d; i++) gradient[i] = dy[i] - w[i] * dy[i];
      if (dx) comba_store(dx + at, gradient, d, call->accumulate[X]);
      for (int64_t i = 0; i < d; i++) gradient[i] = w[i] * dy[i];
      if (dz) comba_store(dz + at, gradient, d, call->accumulate[Z]);
      for (int64_t i = 0; i < d; i++) gradient[i] = (z[i] - x[i]) * dy[i];
      if (dw && step)
        comba_store(dw + at, gradient, d, call->accumulate[W]);
      else
        comba_store(sum, gradient, d, true);
    }
  }
  if (dw && !step) comba_store_blocks(dw, partial, blocks, d, call->accumulate[W]);
}

static const comba_case cases[] = {
    {.name = "one row of weights", .input = {{COMBA_SHAPE(3, 50, 130)}, {COMBA_SHAPE(3, 50, 130)}, {COMBA_SHAPE(130)}}},
    {.name = "weights of every element",
     .input = {{COMBA_SHAPE(2, 70, 131)}, {COMBA_SHAPE(2, 70, 131)}, {COMBA_SHAPE(2, 70, 131)}}},
    {.name = "one number", .input = {{COMBA_SHAPE(1)}, {COMBA_SHAPE(1)}, {COMBA_SHAPE(1)}}},
    {.name = "2048 x 1024",
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_lerp) = {
    .name = "lerp",
    .formula = "y = x + (z - x) w",
    .inputs = 3,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1u << X | 1u << Z | 1u << W,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
