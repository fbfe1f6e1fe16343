/* y = scale a b;  da = scale b dy;  db = scale a dy, summed over the rows where b is one row for all */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { A, B };

static comba_status infer(comba_signature *s) {
  const comba_shape *a = &s->input[A], *b = &s->input[B];
  if (!comba_extent_fits(a, 0)) return comba_fail_shape(s, A, "(..., d)");
  if (!comba_is_row_or_all(b, a)) return comba_fail_shape(s, B, "(d) or the shape of input 0");
  s->outputs = 1;
  s->output[0] = *a;
  s->backward_workspace = 2 * comba_row_blocks(comba_rows(a), comba_last(a)) * comba_last(a);
  return COMBA_OK;
}

static real scale_of(const comba_call *call) {
  const comba_product_attributes *attributes = call->attributes;
  return attributes->scale == 0 ? 1 : (real)attributes->scale;
}

static void forward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[A].shape), d = comba_last(&call->input[A].shape);
  const int64_t step = comba_row_step(&call->input[B].shape);
  const real scale = scale_of(call);
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *a = (const real *)call->input[A].data + row * d, *b = (const real *)call->input[B].data + row * step;
    real *y = (real *)call->output[0].data + row * d;
#pragma omp simd
    for (int64_t i = 0; i < d; i++) y[i] = scale * a[i] * b[i];
  }
}

/* product(x, x) has one gradient for both: the first operand overwrites a row of it, then the second adds. */
static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[A].shape), d = comba_last(&call->input[A].shape);
  const int64_t step = comba_row_step(&call->input[B].shape), blocks = comba_row_blocks(rows, d);
  const real scale = scale_of(call);
  real *da = call->input_gradient[A].data, *db = call->input_gradient[B].data;
  real *partial = call->workspace, *scratch = partial + blocks * d; /* (blocks, d) each */
  if (comba_gradient_absent(call, 2)) return;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(rows, blocks, block + 1);
    real *restrict sum = partial + block * d, *restrict gradient = scratch + block * d;
    memset(sum, 0, (size_t)d * sizeof(real));
    for (int64_t row = comba_block_start(rows, blocks, block); row < end; row++) {
      const int64_t at = row * d;
      const real *a = (const real *)call->input[A].data + at, *b = (const real *)call->input[B].data + row * step;
      const real *dy = (const real *)call->output_gradient[0].data + at;
      for (int64_t i = 0; i < d; i++) gradient[i] = scale * b[i] * dy[i];
      if (da) comba_store(da + at, gradient, d, call->accumulate[A]);
      for (int64_t i = 0; i < d; i++) gradient[i] = scale * a[i] * dy[i];
      if (db && step)
        comba_store(db + at, gradient, d, call->accumulate[B]);
      else
        comba_store(sum, gradient, d, true);
    }
  }
  if (db && !step) comba_store_blocks(db, partial, blocks, d, call->accumulate[B]);
}

static const comba_case cases[] = {
    {.name = "one row for all", .input = {{COMBA_SHAPE(3, 50, 130)}, {COMBA_SHAPE(130)}}},
    {.name = "every element, scaled",
     .attributes = &(const comba_product_attributes){-0.5},
     .input = {{COMBA_SHAPE(2, 70, 131)}, {COMBA_SHAPE(2, 70, 131)}}},
    {.name = "one number", .input = {{COMBA_SHAPE(1)}, {COMBA_SHAPE(1)}}},
    {.name = "2048 x 1024", .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(2, 1024, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_product) = {
    .name = "product",
    .formula = "y = scale a b",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_product_attributes),
    .backward_inputs = 1u << A | 1u << B,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
