/* y = n weight f(gate),  n = x r,  r = 1 / sqrt(mean(x^2) + epsilon)
 * with u = dy weight f(gate):  dx = r (u - n mean(u n));  dgate = dy n weight f'(gate);  dweight += dy n f(gate)
 *
 * f(z) = (linear z + constant) sigmoid(z): sigmoid with linear = 0, constant = 1, silu with 1, 0. As arithmetic, because a
 * choice between the two inside the loops would keep them from vectorising. Saved: r (rows). */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, GATE, WEIGHT };

static comba_status infer(comba_signature *s) {
  const comba_gated_rms_norm_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[X], *gate = &s->input[GATE], *weight = &s->input[WEIGHT];
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, X, "(..., V)");
  const int64_t rows = comba_rows(x), d = comba_last(x);
  if (!comba_shape_equal(x, gate)) return comba_fail_shape(s, GATE, "the shape of input 0");
  const int64_t groups = weight->rank ? comba_weight_groups(x, weight) : 0;
  if (!groups) return comba_fail_shape(s, WEIGHT, "(V), or (g V) for x (..., g, V)");
  if (attributes->gate != COMBA_SIGMOID && attributes->gate != COMBA_SILU)
    return comba_fail(COMBA_ERROR_ARGUMENT, "gated_rms_norm: gate function is %d, expected %d (sigmoid) or %d (silu)",
                      (int)attributes->gate, COMBA_SIGMOID, COMBA_SILU);
  s->outputs = 1;
  s->output[0] = *x;
  s->saved = 1;
  s->saved_shape[0] = COMBA_SHAPE(rows);
  s->backward_workspace = (2 + groups) * comba_row_blocks(rows, d) * d;
  return comba_infer_epsilon(s, attributes->epsilon);
}

static void forward(const comba_call *call) {
  const comba_gated_rms_norm_attributes *attributes = call->attributes;
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const int64_t groups = comba_weight_groups(&call->input[X].shape, &call->input[WEIGHT].shape);
  const real epsilon = (real)attributes->epsilon;
  const real linear = attributes->gate == COMBA_SILU, constant = 1 - linear;
  real *rstd = call->saved[0].data;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *x = (const real *)call->input[X].data + row * d, *gate = (const real *)call->input[GATE].data + row * d;
    const real *weight = (const real *)call->input[WEIGHT].data + row % groups * d;
    real *y = (real *)call->output[0].data + row * d;
    const real r = 1 / comba_real_sqrt(comba_dot(x, x, d) / (real)d + epsilon);
#pragma omp simd
    for (int64_t j = 0; j < d; j++) {
      const real z = gate[j], s = comba_sigmoid(z);
      y[j] = x[j] * r * weight[j] * (linear * z + constant) * s;
    }
    if (rstd) rstd[row] = r;
  }
}

static void backward(const comba_call *call) {
  const comba_gated_rms_norm_attributes *attributes = call->attributes;
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const int64_t groups = comba_weight_groups(&call->input[X].shape, &call->input[WEIGHT].shape);
  const int64_t blocks = comba_row_blocks(rows, d);
  const real *weights = call->input[WEIGHT].data, *rstd = call->saved[0].data;
  const real linear = attributes->gate == COMBA_SILU, constant = 1 - linear;
  real *dx = call->input_gradient[X].data, *dgate = call->input_gradient[GATE].data;
  real *dweight = call->input_gradient[WEIGHT].data;
  real *partial = call->workspace, *scratch = partial + blocks * groups * d; /* (blocks, groups, d); (blocks, 2, d) */
  if (comba_gradient_absent(call, 3)) return;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(rows, blocks, block + 1);
    real *restrict sums = partial + block * groups * d, *restrict u = scratch + 2 * block * d, *restrict slope = u + d;
    memset(sums, 0, (size_t)(groups * d) * sizeof(real));
    for (int64_t row = comba_block_start(rows, blocks, block); row < end; row++) {
      const int64_t at = row * d;
      const real *x = (const real *)call->input[X].data + at, *gate = (const real *)call->input[GATE].data + at;
      const real *dy = (const real *)call->output_gradient[0].data + at;
      const real *weight = weights + row % groups * d, r = rstd[row];
      real *restrict sum = sums + row % groups * d;
#pragma omp simd
      for (int64_t j = 0; j < d; j++) {
        const real z = gate[j], s = comba_sigmoid(z);
        const real value = (linear * z + constant) * s, derivative = linear * s + value * (1 - s);
        const real along = dy[j] * x[j] * r;
        u[j] = dy[j] * weight[j] * value;
        slope[j] = along * weight[j] * derivative;
        sum[j] += along * value;
      }
      const real projection = r * r * comba_dot(u, x, d) / (real)d;
      for (int64_t j = 0; j < d; j++) u[j] = r * (u[j] - x[j] * projection);
      if (dx) comba_store(dx + at, u, d, call->accumulate[X]);
      if (dgate) comba_store(dgate + at, slope, d, call->accumulate[GATE]);
    }
  }
  if (dweight) comba_store_blocks(dweight, partial, blocks, groups * d, call->accumulate[WEIGHT]);
}

#define GATE_BY(epsilon, function) (&(const comba_gated_rms_norm_attributes){epsilon, function})
static const comba_case cases[] = {
    {.name = "sigmoid",
     .attributes = GATE_BY(1e-5, COMBA_SIGMOID),
     .input = {{COMBA_SHAPE(2, 33, 3, 24)}, {COMBA_SHAPE(2, 33, 3, 24)}, {COMBA_SHAPE(24)}}},
    {.name = "silu",
     .attributes = GATE_BY(1e-2, COMBA_SILU),
     .input = {{COMBA_SHAPE(3, 47, 130), .scale = 0.1}, {COMBA_SHAPE(3, 47, 130)}, {COMBA_SHAPE(130)}}},
    {.name = "silu, by groups",
     .attributes = GATE_BY(1e-5, COMBA_SILU),
     .input = {{COMBA_SHAPE(2, 91, 3, 20)}, {COMBA_SHAPE(2, 91, 3, 20)}, {COMBA_SHAPE(60)}}},
    {.name = "rows of 1504",
     .attributes = GATE_BY(1e-5, COMBA_SILU),
     .input = {{COMBA_SHAPE(3, 1504)}, {COMBA_SHAPE(3, 1504)}, {COMBA_SHAPE(1504)}}},
    {.name = "one row, saturated gate",
     .attributes = GATE_BY(1e-6, COMBA_SILU),
     .input = {{COMBA_SHAPE(19)}, {COMBA_SHAPE(19), COMBA_FILL_UNIFORM, .low = -110, .high = 110}, {COMBA_SHAPE(19)}}},
    {.name = "2048 x 16 x 64",
     .attributes = GATE_BY(1e-6, COMBA_SIGMOID),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(2, 1024, 16, 64)}, {COMBA_SHAPE(64)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_gated_rms_norm) = {
    .name = "gated_rms_norm",
    .formula = "y = x / sqrt(mean(x^2) + epsilon) weight f(gate), f sigmoid or silu",
    .inputs = 3,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_gated_rms_norm_attributes),
    .backward_inputs = 1u << X | 1u << GATE | 1u << WEIGHT,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
