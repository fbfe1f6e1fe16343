/* z = x + residual;  y = z r weight,  r = 1 / sqrt(mean(z^2) + epsilon)
 * with u = dy weight:  dz = r (u - z r^2 mean(u z)) + dsum;  dx = dresidual = dz;  dweight += dy z r
 *
 * The second output is z, the residual stream. Saved: r (rows). */
#include "ops/extent.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, WEIGHT, RESIDUAL };
enum { Y, SUM };

static comba_status infer(comba_signature *s) {
  const comba_norm_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[X], *weight = &s->input[WEIGHT], *residual = &s->input[RESIDUAL];
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, X, "(..., d)");
  const int64_t rows = comba_rows(x), d = comba_last(x);
  const int64_t groups = comba_weight_groups(x, weight);
  if (!groups) return comba_fail_shape(s, WEIGHT, "(d), or (g d) for x (..., g, d)");
  if (residual->rank && !comba_shape_equal(x, residual)) return comba_fail_shape(s, RESIDUAL, "the shape of input 0");
  s->outputs = 2;
  s->output[Y] = s->output[SUM] = *x;
  s->saved = 1;
  s->saved_shape[0] = COMBA_SHAPE(rows);
  s->backward_workspace = (1 + groups) * comba_row_blocks(rows, d) * d;
  return comba_infer_epsilon(s, attributes->epsilon);
}

static void forward(const comba_call *call) {
  const comba_norm_attributes *attributes = call->attributes;
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const int64_t groups = comba_weight_groups(&call->input[X].shape, &call->input[WEIGHT].shape);
  const real *weights = call->input[WEIGHT].data, *residual = call->input[RESIDUAL].data;
  const real epsilon = (real)attributes->epsilon;
  real *rstd = call->saved[0].data;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *x = (const real *)call->input[X].data + row * d;
    real *y = (real *)call->output[Y].data + row * d, *z = (real *)call->output[SUM].data + row * d;
    comba_store(z, x, d, false);
    if (residual) comba_store(z, residual + row * d, d, true);
    const real r = 1 / comba_real_sqrt(comba_dot(z, z, d) / (real)d + epsilon);
    const real *weight = weights ? weights + row % groups * d : NULL;
    if (weight)
      for (int64_t j = 0; j < d; j++) y[j] = z[j] * r * weight[j];
    else
      comba_store_scaled(y, r, z, d, false);
    if (rstd) rstd[row] = r;
  }
}

static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const int64_t groups = comba_weight_groups(&call->input[X].shape, &call->input[WEIGHT].shape);
  const int64_t blocks = comba_row_blocks(rows, d);
  const real *weights = call->input[WEIGHT].data, *z = call->output[SUM].data, *rstd = call->saved[0].data;
  const real *dy = call->output_gradient[Y].data, *dsum = call->output_gradient[SUM].data;
  real *dx = call->input_gradient[X].data, *dresidual = call->input_gradient[RESIDUAL].data;
  real *dweight = call->input_gradient[WEIGHT].data;
  real *partial = call->workspace, *scratch = partial + blocks * groups * d; /* (blocks, groups, d); (blocks, d) */
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(rows, blocks, block + 1);
    real *restrict sums = partial + block * groups * d, *restrict dz = scratch + block * d;
    memset(sums, 0, (size_t)(groups * d) * sizeof(real));
    for (int64_t row = comba_block_start(rows, blocks, block); row < end; row++) {
      const int64_t at = row * d;
      if (dy) {
        const real r = rstd[row];
        real projection = 0;
        const real *weight = weights ? weights + row % groups * d : NULL;
        real *restrict sum = sums + row % groups * d;
        if (weight)
#pragma omp simd reduction(+ : projection)
          for (int64_t j = 0; j < d; j++) {
            dz[j] = dy[at + j] * weight[j];
            projection += dz[j] * z[at + j];
            sum[j] += dy[at + j] * z[at + j] * r;
          }
        else {
          comba_store(dz, dy + at, d, false);
          projection = comba_dot(dz, z + at, d);
        }
        projection *= r * r / (real)d;
        for (int64_t j = 0; j < d; j++) dz[j] = r * (dz[j] - z[at + j] * projection);
      } else {
        memset(dz, 0, (size_t)d * sizeof(real));
      }
      if (dsum) comba_store(dz, dsum + at, d, true);
      if (dx) comba_store(dx + at, dz, d, call->accumulate[X]);
      if (dresidual) comba_store(dresidual + at, dz, d, call->accumulate[RESIDUAL]);
    }
  }
  if (dweight) comba_store_blocks(dweight, partial, blocks, groups * d, call->accumulate[WEIGHT]);
}

#define EPSILON(value) (&(const comba_norm_attributes){value})
static const comba_case cases[] = {
    {.name = "residual",
     .attributes = EPSILON(1e-5),
     .input = {{COMBA_SHAPE(2, 33, 24)}, {COMBA_SHAPE(24)}, {COMBA_SHAPE(2, 33, 24)}}},
    {.name = "no residual, more than one block",
     .attributes = EPSILON(1e-6),
     .input = {{COMBA_SHAPE(3, 47, 130)}, {COMBA_SHAPE(130)}}},
    {.name = "no weight, one row", .attributes = EPSILON(1e-6), .input = {{COMBA_SHAPE(37)}}},
    {.name = "small values, large epsilon",
     .attributes = EPSILON(1e-2),
     .input = {{COMBA_SHAPE(5, 2, 3, 16), .scale = 0.05},
               {COMBA_SHAPE(16)},
               {COMBA_SHAPE(5, 2, 3, 16), .scale = 0.05}}},
    {.name = "by groups",
     .attributes = EPSILON(1e-5),
     .input = {{COMBA_SHAPE(2, 91, 3, 20)}, {COMBA_SHAPE(60)}, {COMBA_SHAPE(2, 91, 3, 20)}}},
    {.name = "rows of 400",
     .attributes = EPSILON(1e-5),
     .input = {{COMBA_SHAPE(3, 400)}, {COMBA_SHAPE(400)}, {COMBA_SHAPE(3, 400)}}},
    {.name = "rows of 1000",
     .attributes = EPSILON(1e-5),
     .input = {{COMBA_SHAPE(3, 1000)}, {COMBA_SHAPE(1000)}, {COMBA_SHAPE(3, 1000)}}},
    {.name = "rows of 4104",
     .attributes = EPSILON(1e-5),
     .input = {{COMBA_SHAPE(3, 4104)}, {COMBA_SHAPE(4104)}, {COMBA_SHAPE(3, 4104)}}},
    {.name = "one channel", .attributes = EPSILON(0.1), .input = {{COMBA_SHAPE(9, 1)}, {COMBA_SHAPE(1)}}},
    {.name = "2048 x 1024",
     .attributes = EPSILON(1e-6),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(1024)}, {COMBA_SHAPE(2, 1024, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_rms_norm) = {
    .name = "rms_norm",
    .formula = "z = x + residual, y = z / sqrt(mean(z^2) + epsilon) weight",
    .inputs = 3,
    .outputs = 2,
    .optional_inputs = 1u << WEIGHT | 1u << RESIDUAL,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION, COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_norm_attributes),
    .backward_inputs = 1u << WEIGHT,
    .equal_gradients = 1u << X | 1u << RESIDUAL,
    .backward_outputs = 1u << SUM,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
