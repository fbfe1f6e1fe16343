/* z (B,T,H,K) = y + d_h x, the skip of a state space model; dy = dz;  dx = d_h dz;  dd_h += <dz, x> over B, T and K */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

enum { Y, X, D };

static comba_status infer(comba_signature *s) {
  const comba_shape *y = &s->input[Y], *x = &s->input[X], *d = &s->input[D];
  if (!comba_extent_fits(y, 4)) return comba_fail_shape(s, Y, "(B, T, H, K)");
  if (!comba_shape_equal(y, x)) return comba_fail_shape(s, X, "the shape of input 0");
  if (d->rank != 1 || d->size[0] != y->size[2]) return comba_fail_shape(s, D, "(H)");
  s->outputs = 1;
  s->output[0] = *y;
  s->backward_workspace = comba_row_blocks(y->size[0] * y->size[1], y->size[2] * y->size[3]) * y->size[2];
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[Y].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const real *d = call->input[D].data;
#pragma omp parallel for if (tokens * heads * k > COMBA_SERIAL)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t h = 0; h < heads; h++) {
      const int64_t at = (token * heads + h) * k;
      const real *y = (const real *)call->input[Y].data + at, *x = (const real *)call->input[X].data + at;
      real *z = (real *)call->output[0].data + at;
#pragma omp simd
      for (int64_t i = 0; i < k; i++) z[i] = y[i] + d[h] * x[i];
    }
}

static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[Y].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const int64_t blocks = comba_row_blocks(tokens, heads * k);
  const real *x = call->input[X].data, *d = call->input[D].data, *dz = call->output_gradient[0].data;
  real *dy = call->input_gradient[Y].data, *dx = call->input_gradient[X].data, *dd = call->input_gradient[D].data;
  real *partial = call->workspace; /* (blocks, H) */
  if (comba_gradient_absent(call, 3)) return;
#pragma omp parallel for if (tokens * heads * k > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(tokens, blocks, block + 1);
    real *sum = partial + block * heads;
    memset(sum, 0, (size_t)heads * sizeof(real));
    for (int64_t token = comba_block_start(tokens, blocks, block); token < end; token++)
      for (int64_t h = 0; h < heads; h++) {
        const int64_t at = (token * heads + h) * k;
        if (dd) sum[h] += comba_dot(dz + at, x + at, k);
        if (dy) comba_store(dy + at, dz + at, k, call->accumulate[Y]);
        if (dx) comba_store_scaled(dx + at, d[h], dz + at, k, call->accumulate[X]);
      }
  }
  if (dd) comba_store_blocks(dd, partial, blocks, heads, call->accumulate[D]);
}

static const comba_case cases[] = {
    {.name = "odd heads", .input = {{COMBA_SHAPE(2, 9, 3, 21)}, {COMBA_SHAPE(2, 9, 3, 21)}, {COMBA_SHAPE(3)}}},
    {.name = "more than one block",
     .input = {{COMBA_SHAPE(3, 50, 2, 64)}, {COMBA_SHAPE(3, 50, 2, 64)}, {COMBA_SHAPE(2)}}},
    {.name = "one channel", .input = {{COMBA_SHAPE(2, 50, 37, 1)}, {COMBA_SHAPE(2, 50, 37, 1)}, {COMBA_SHAPE(37)}}},
    {.name = "one token", .input = {{COMBA_SHAPE(1, 1, 5, 1)}, {COMBA_SHAPE(1, 1, 5, 1)}, {COMBA_SHAPE(5)}}},
    {.name = "2048 x 16 x 64",
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_head_skip) = {
    .name = "head_skip",
    .formula = "z = y + d_h x",
    .inputs = 3,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1u << X | 1u << D,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
