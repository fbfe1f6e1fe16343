/* y = a b, element by element;  da = dy b, db = dy a */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

static comba_status infer(comba_signature *s) {
  if (!comba_extent_fits(&s->input[0], 0)) return comba_fail_shape(s, 0, "any shape");
  if (!comba_shape_equal(&s->input[0], &s->input[1])) return comba_fail_shape(s, 1, "the shape of input 0");
  s->outputs = 1;
  s->output[0] = s->input[0];
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[0].shape), tiles = comba_tiles(count);
  const real *a = call->input[0].data, *b = call->input[1].data;
  real *y = call->output[0].data;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t start = tile * COMBA_TILE, end = start + comba_tile_size(count, tile);
    for (int64_t i = start; i < end; i++) y[i] = a[i] * b[i];
  }
}

/* Both gradients of a tile are computed before either is written: product(x, x) has one memory for the two. */
static void backward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[0].shape), tiles = comba_tiles(count);
  const real *a = call->input[0].data, *b = call->input[1].data, *dy = call->output_gradient[0].data;
  real *da = call->input_gradient[0].data, *db = call->input_gradient[1].data;
  if (comba_gradient_absent(call, 2)) return;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t start = tile * COMBA_TILE, n = comba_tile_size(count, tile);
    real to_a[COMBA_TILE], to_b[COMBA_TILE];
    for (int64_t i = 0; i < n; i++) {
      to_a[i] = dy[start + i] * b[start + i];
      to_b[i] = dy[start + i] * a[start + i];
    }
    if (da) comba_store(da + start, to_a, n, call->accumulate[0]);
    if (db) comba_store(db + start, to_b, n, call->accumulate[1]);
  }
}

static const comba_case cases[] = {
    {.name = "more than one tile and thread", .input = {{COMBA_SHAPE(3, 57, 97)}, {COMBA_SHAPE(3, 57, 97)}}},
    {.name = "one", .input = {{COMBA_SHAPE(1)}, {COMBA_SHAPE(1)}}},
    {.name = "2048 x 1024", .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(2, 1024, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_product) = {
    .name = "product",
    .formula = "y = a b",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 3,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
