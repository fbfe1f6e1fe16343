/* y (...,d) = sigmoid(gate) weight x, gate (...,d), weight (d); with s = sigmoid(gate):
 *   dx = s weight dy;  dgate = s (1 - s) weight x dy;  dweight += s x dy over all rows */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, GATE, WEIGHT };

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, X, "(..., d)");
  const int64_t rows = comba_rows(x), d = comba_last(x);
  if (!comba_shape_equal(&s->input[GATE], x)) return comba_fail_shape(s, GATE, "(..., d), as x");
  if (!comba_shape_equal(&s->input[WEIGHT], &COMBA_SHAPE(d))) return comba_fail_shape(s, WEIGHT, "(d)");
  s->outputs = 1;
  s->output[0] = *x;
  s->backward_workspace = comba_row_blocks(rows, d) * d;
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const real *weight = call->input[WEIGHT].data;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *restrict x = (const real *)call->input[X].data + row * d;
    const real *restrict gate = (const real *)call->input[GATE].data + row * d;
    real *restrict y = (real *)call->output[0].data + row * d;
    for (int64_t j = 0; j < d; j++) y[j] = comba_sigmoid(gate[j]) * weight[j] * x[j];
  }
}

/* to = or += value, where there is one to write to */
static inline void put(real *to, int64_t at, real value, bool accumulate) {
  if (to) to[at] = accumulate ? to[at] + value : value;
}

static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const int64_t blocks = comba_row_blocks(rows, d);
  const real *x = call->input[X].data, *gate = call->input[GATE].data, *weight = call->input[WEIGHT].data;
  const real *dy = call->output_gradient[0].data;
  real *partial = call->workspace; /* (blocks, d) */
  if (comba_gradient_absent(call, 3)) return;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(rows, blocks, block + 1);
    real *sum = partial + block * d;
    memset(sum, 0, (size_t)d * sizeof(real));
    for (int64_t row = comba_block_start(rows, blocks, block); row < end; row++)
      for (int64_t j = 0; j < d; j++) {
        const int64_t at = row * d + j;
        const real s = comba_sigmoid(gate[at]), passed = s * dy[at];
        put(call->input_gradient[X].data, at, passed * weight[j], call->accumulate[X]);
        put(call->input_gradient[GATE].data, at, passed * (1 - s) * weight[j] * x[at], call->accumulate[GATE]);
        sum[j] += passed * x[at];
      }
  }
  if (call->input_gradient[WEIGHT].data)
    comba_store_blocks(call->input_gradient[WEIGHT].data, partial, blocks, d, call->accumulate[WEIGHT]);
}

static const comba_case cases[] = {
    {.name = "rows", .input = {{COMBA_SHAPE(2, 47, 24)}, {COMBA_SHAPE(2, 47, 24)}, {COMBA_SHAPE(24)}}},
    {.name = "more than one block", .input = {{COMBA_SHAPE(300, 70)}, {COMBA_SHAPE(300, 70)}, {COMBA_SHAPE(70)}}},
    {.name = "saturated",
     .input = {{COMBA_SHAPE(9, 5)},
               {COMBA_SHAPE(9, 5), COMBA_FILL_UNIFORM, .low = -110, .high = 110},
               {COMBA_SHAPE(5)}}},
    {.name = "2048 x 1024",
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_channel_gate) = {
    .name = "channel_gate",
    .formula = "y = sigmoid(gate) weight x",
    .inputs = 3,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1u << X | 1u << GATE | 1u << WEIGHT,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
