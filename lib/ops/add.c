/* y = a + b;  da = dy, db = dy */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

enum { A, B };

static comba_status infer(comba_signature *s) {
  const comba_shape *a = &s->input[A], *b = &s->input[B];
  if (!comba_extent_fits(a, 0)) return comba_fail_shape(s, A, "any shape");
  if (!comba_shape_equal(a, b)) return comba_fail_shape(s, B, "the shape of input 0");
  s->outputs = 1;
  s->output[0] = *a;
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[A].shape), tiles = comba_tiles(count);
  const real *a = call->input[A].data, *b = call->input[B].data;
  real *y = call->output[0].data;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t start = tile * COMBA_TILE, end = start + comba_tile_size(count, tile);
    for (int64_t i = start; i < end; i++) y[i] = a[i] + b[i];
  }
}

/* add(x, x) has one gradient for both: the first operand overwrites a tile of it, then the second adds. */
static void backward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[A].shape), tiles = comba_tiles(count);
  const real *dy = call->output_gradient[0].data;
  if (comba_gradient_absent(call, 2)) return;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t start = tile * COMBA_TILE, n = comba_tile_size(count, tile);
    for (int operand = A; operand <= B; operand++) {
      real *gradient = call->input_gradient[operand].data;
      if (gradient) comba_store(gradient + start, dy + start, n, call->accumulate[operand]);
    }
  }
}

static const comba_case cases[] = {
    {.name = "one element", .input = {{COMBA_SHAPE(1)}, {COMBA_SHAPE(1)}}},
    {.name = "more than one tile and thread", .input = {{COMBA_SHAPE(3, 57, 97)}, {COMBA_SHAPE(3, 57, 97)}}},
    {.name = "2048 x 1024", .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(2, 1024, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_add) = {
    .name = "add",
    .formula = "y = a + b",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .equal_gradients = 1u << A | 1u << B,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
