/* y = silu(gate) up, silu(x) = x s with s = sigmoid(x)
 * dgate = dy up (s + gate s (1 - s));  dup = dy silu(gate) */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

enum { GATE, UP };

static comba_status infer(comba_signature *s) {
  const comba_shape *gate = &s->input[GATE], *up = &s->input[UP];
  if (!comba_extent_fits(gate, 0)) return comba_fail_shape(s, GATE, "any shape");
  if (!comba_shape_equal(gate, up)) return comba_fail_shape(s, UP, "the shape of input 0");
  s->outputs = 1;
  s->output[0] = *gate;
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[GATE].shape), tiles = comba_tiles(count);
  const real *gate = call->input[GATE].data, *up = call->input[UP].data;
  real *y = call->output[0].data;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t start = tile * COMBA_TILE, end = start + comba_tile_size(count, tile);
    for (int64_t i = start; i < end; i++) y[i] = gate[i] * comba_sigmoid(gate[i]) * up[i];
  }
}

/* Both gradients of a tile are computed before either is written: swiglu(x, x) has one memory for the two. */
static void backward(const comba_call *call) {
  const int64_t count = comba_shape_elements(&call->input[GATE].shape), tiles = comba_tiles(count);
  const real *gate = call->input[GATE].data, *up = call->input[UP].data, *dy = call->output_gradient[0].data;
  real *dgate = call->input_gradient[GATE].data, *dup = call->input_gradient[UP].data;
  if (comba_gradient_absent(call, 2)) return;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t start = tile * COMBA_TILE, n = comba_tile_size(count, tile);
    real to_gate[COMBA_TILE], to_up[COMBA_TILE];
    for (int64_t i = 0; i < n; i++) {
      const real x = gate[start + i], s = comba_sigmoid(x);
      to_gate[i] = dy[start + i] * up[start + i] * (s + x * s * (1 - s));
      to_up[i] = dy[start + i] * x * s;
    }
    if (dgate) comba_store(dgate + start, to_gate, n, call->accumulate[GATE]);
    if (dup) comba_store(dup + start, to_up, n, call->accumulate[UP]);
  }
}

static const comba_case cases[] = {
    {.name = "more than one tile and thread", .input = {{COMBA_SHAPE(3, 57, 97)}, {COMBA_SHAPE(3, 57, 97)}}},
    {.name = "saturated",
     .input = {{COMBA_SHAPE(3, 37), COMBA_FILL_UNIFORM, .low = -110, .high = 110}, {COMBA_SHAPE(3, 37)}}},
    {.name = "2048 x 2816", .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 2816)}, {COMBA_SHAPE(2, 1024, 2816)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_swiglu) = {
    .name = "swiglu",
    .formula = "y = silu(gate) up",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1u << GATE | 1u << UP,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
