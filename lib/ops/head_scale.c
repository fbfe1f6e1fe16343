/* y (B,T,H,K) = sigmoid(s_h) x;  dx = sigmoid(s_h) dy;  ds_h += sigmoid(s_h) sigmoid(-s_h) <dy, x> over B, T and K */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

enum { X, S };

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *scale = &s->input[S];
  if (!comba_extent_fits(x, 4)) return comba_fail_shape(s, X, "(B, T, H, K)");
  const int64_t heads = x->size[2];
  if (scale->rank != 1 || scale->size[0] != heads) return comba_fail_shape(s, S, "(H)");
  s->outputs = 1;
  s->output[0] = *x;
  s->forward_workspace = heads;
  s->backward_workspace = (1 + comba_row_blocks(x->size[0] * x->size[1], heads * x->size[3])) * heads;
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const real *x = call->input[X].data, *s = call->input[S].data;
  real *y = call->output[0].data, *scale = call->workspace; /* (H) */
  for (int64_t h = 0; h < heads; h++) scale[h] = comba_sigmoid(s[h]);
#pragma omp parallel for if (tokens * heads * k > COMBA_SERIAL)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t h = 0; h < heads; h++) {
      const int64_t at = (token * heads + h) * k;
      comba_store_scaled(y + at, scale[h], x + at, k, false);
    }
}

static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const int64_t blocks = comba_row_blocks(tokens, heads * k);
  const real *x = call->input[X].data, *s = call->input[S].data, *dy = call->output_gradient[0].data;
  real *dx = call->input_gradient[X].data, *ds = call->input_gradient[S].data;
  real *scale = call->workspace, *partial = scale + heads; /* (H); (blocks, H) */
  if (comba_gradient_absent(call, 2)) return;
  for (int64_t h = 0; h < heads; h++) scale[h] = comba_sigmoid(s[h]);
#pragma omp parallel for if (tokens * heads * k > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(tokens, blocks, block + 1);
    real *sum = partial + block * heads;
    memset(sum, 0, (size_t)heads * sizeof(real));
    for (int64_t token = comba_block_start(tokens, blocks, block); token < end; token++)
      for (int64_t h = 0; h < heads; h++) {
        const int64_t at = (token * heads + h) * k;
        if (ds) sum[h] += comba_dot(dy + at, x + at, k);
        if (dx) comba_store_scaled(dx + at, scale[h], dy + at, k, call->accumulate[X]);
      }
  }
  if (!ds) return;
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t h = 0; h < heads; h++) partial[block * heads + h] *= scale[h] * comba_sigmoid(-s[h]);
  comba_store_blocks(ds, partial, blocks, heads, call->accumulate[S]);
}

static const comba_case cases[] = {
    {.name = "odd heads", .input = {{COMBA_SHAPE(2, 9, 3, 21)}, {COMBA_SHAPE(3)}}},
    {.name = "more than one block", .input = {{COMBA_SHAPE(3, 50, 2, 64)}, {COMBA_SHAPE(2)}}},
    {.name = "one token, saturated",
     .input = {{COMBA_SHAPE(1, 1, 7, 5)}, {COMBA_SHAPE(7), COMBA_FILL_UNIFORM, .low = -110, .high = 110}}},
    {.name = "2048 x 16 x 64", .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_head_scale) = {
    .name = "head_scale",
    .formula = "y = sigmoid(s_h) x",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1u << X | 1u << S,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
