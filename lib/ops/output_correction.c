/* y (B,T,H,K) = q + s d_h p, s = -1 (arXiv 2506.02475 Eq. 5) or 1 (the skip of a state space model)
 * dq = dy;  dp = s d_h dy;  dd_h += s <dy, p> over B, T and K */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { Q, P, D };

static real sign(const comba_call *call) {
  return ((const comba_output_correction_attributes *)call->attributes)->adds ? 1 : -1;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *q = &s->input[Q], *p = &s->input[P], *d = &s->input[D];
  if (!comba_extent_fits(q, 4)) return comba_fail_shape(s, Q, "(B, T, H, K)");
  if (!comba_shape_equal(q, p)) return comba_fail_shape(s, P, "the shape of input 0");
  if (d->rank != 1 || d->size[0] != q->size[2]) return comba_fail_shape(s, D, "(H)");
  s->outputs = 1;
  s->output[0] = *q;
  s->backward_workspace = comba_row_blocks(q->size[0] * q->size[1], q->size[2] * q->size[3]) * q->size[2];
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[Q].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const real *d = call->input[D].data, s = sign(call);
#pragma omp parallel for if (tokens * heads * k > COMBA_SERIAL)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t h = 0; h < heads; h++) {
      const int64_t at = (token * heads + h) * k;
      const real *q = (const real *)call->input[Q].data + at, *p = (const real *)call->input[P].data + at;
      real *y = (real *)call->output[0].data + at;
#pragma omp simd
      for (int64_t i = 0; i < k; i++) y[i] = q[i] + s * d[h] * p[i];
    }
}

static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[Q].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const int64_t blocks = comba_row_blocks(tokens, heads * k);
  const real *p = call->input[P].data, *d = call->input[D].data, *dy = call->output_gradient[0].data, s = sign(call);
  real *dq = call->input_gradient[Q].data, *dp = call->input_gradient[P].data, *dd = call->input_gradient[D].data;
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
        if (dd) sum[h] += s * comba_dot(dy + at, p + at, k);
        if (dq) comba_store(dq + at, dy + at, k, call->accumulate[Q]);
        if (dp) comba_store_scaled(dp + at, s * d[h], dy + at, k, call->accumulate[P]);
      }
  }
  if (dd) comba_store_blocks(dd, partial, blocks, heads, call->accumulate[D]);
}

static const comba_case cases[] = {
    {.name = "odd heads", .input = {{COMBA_SHAPE(2, 9, 3, 21)}, {COMBA_SHAPE(2, 9, 3, 21)}, {COMBA_SHAPE(3)}}},
    {.name = "more than one block",
     .input = {{COMBA_SHAPE(3, 50, 2, 64)}, {COMBA_SHAPE(3, 50, 2, 64)}, {COMBA_SHAPE(2)}}},
    {.name = "adds, one channel",
     .attributes = &(const comba_output_correction_attributes){.adds = true},
     .input = {{COMBA_SHAPE(2, 50, 37, 1)}, {COMBA_SHAPE(2, 50, 37, 1)}, {COMBA_SHAPE(37)}}},
    {.name = "one token", .input = {{COMBA_SHAPE(1, 1, 5, 1)}, {COMBA_SHAPE(1, 1, 5, 1)}, {COMBA_SHAPE(5)}}},
    {.name = "2048 x 16 x 64",
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_output_correction) = {
    .name = "output_correction",
    .formula = "y = q - d_h p, or q + d_h p",
    .inputs = 3,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_output_correction_attributes),
    .backward_inputs = 1u << P | 1u << D,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
