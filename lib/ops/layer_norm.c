/* y = n weight + bias,  n = (x - mean) r,  r = 1 / sqrt(variance + epsilon)
 * with u = dy weight:  dx = r (u - mean(u) - n mean(u n));  dweight += dy n;  dbias += dy
 *
 * Saved: mean and r (rows). A weight and bias (H,d) are those of heads, x (..., H, d). */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, WEIGHT, BIAS };
enum { MEAN, RSTD };

/* Rows of weight and bias: 1 of (d), H of (H,d), which the rows of x take in turn. */
static int64_t heads_of(const comba_shape *weight, const comba_shape *bias) {
  const comba_shape *shape = weight->rank ? weight : bias;
  return shape->rank == 2 ? shape->size[0] : 1;
}

static bool fits(const comba_shape *parameter, const comba_shape *x) {
  if (!parameter->rank) return true;
  for (int i = 1; i <= parameter->rank && i <= x->rank; i++)
    if (parameter->size[parameter->rank - i] != x->size[x->rank - i]) return false;
  return parameter->rank <= 2 && parameter->rank <= x->rank;
}

static comba_status infer(comba_signature *s) {
  const comba_norm_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[X], *weight = &s->input[WEIGHT], *bias = &s->input[BIAS];
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, X, "(..., d)");
  const int64_t rows = comba_rows(x), d = comba_last(x);
  if (!fits(weight, x)) return comba_fail_shape(s, WEIGHT, "(d) or (H, d), the last sizes of x");
  if (!fits(bias, x) || (weight->rank && bias->rank && weight->rank != bias->rank))
    return comba_fail_shape(s, BIAS, "(d) or (H, d), as the weight");
  s->outputs = 1;
  s->output[0] = *x;
  s->saved = 2;
  s->saved_shape[MEAN] = s->saved_shape[RSTD] = COMBA_SHAPE(rows);
  s->backward_workspace = comba_row_blocks(rows, d) * d * (2 * heads_of(weight, bias) + 1);
  return comba_infer_epsilon(s, attributes->epsilon);
}

static void forward(const comba_call *call) {
  const comba_norm_attributes *attributes = call->attributes;
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const real *weight = call->input[WEIGHT].data, *bias = call->input[BIAS].data;
  const int64_t heads = heads_of(&call->input[WEIGHT].shape, &call->input[BIAS].shape);
  const real epsilon = (real)attributes->epsilon;
  real *means = call->saved[MEAN].data, *rstd = call->saved[RSTD].data;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *restrict x = (const real *)call->input[X].data + row * d;
    real *restrict y = (real *)call->output[0].data + row * d;
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < d; j++) sum += x[j];
    const real mean = sum / (real)d;
    for (int64_t j = 0; j < d; j++) y[j] = x[j] - mean;
    const real r = 1 / comba_real_sqrt(comba_dot(y, y, d) / (real)d + epsilon);
    for (int64_t j = 0; j < d; j++) y[j] *= r;
    const int64_t head = row % heads * d;
    if (weight)
      for (int64_t j = 0; j < d; j++) y[j] *= weight[head + j];
    if (bias) comba_store(y, bias + head, d, true);
    if (means) {
      means[row] = mean;
      rstd[row] = r;
    }
  }
}

static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[X].shape), d = comba_last(&call->input[X].shape);
  const int64_t blocks = comba_row_blocks(rows, d);
  const int64_t heads = heads_of(&call->input[WEIGHT].shape, &call->input[BIAS].shape), width = heads * d;
  const real *weight = call->input[WEIGHT].data, *means = call->saved[MEAN].data, *rstd = call->saved[RSTD].data;
  real *dx = call->input_gradient[X].data, *dweight = call->input_gradient[WEIGHT].data;
  real *dbias = call->input_gradient[BIAS].data;
  real *to_weight = call->workspace, *to_bias = to_weight + blocks * width; /* (blocks, heads d) */
  real *scratch = to_bias + blocks * width;                                 /* (blocks, d) */
  if (comba_gradient_absent(call, 3)) return;
#pragma omp parallel for if (rows * d > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(rows, blocks, block + 1);
    real *weight_sums = to_weight + block * width, *bias_sums = to_bias + block * width;
    real *restrict u = scratch + block * d;
    memset(weight_sums, 0, (size_t)width * sizeof(real));
    memset(bias_sums, 0, (size_t)width * sizeof(real));
    for (int64_t row = comba_block_start(rows, blocks, block); row < end; row++) {
      const real *x = (const real *)call->input[X].data + row * d;
      const real *dy = (const real *)call->output_gradient[0].data + row * d;
      const real mean = means[row], r = rstd[row];
      const int64_t head = row % heads * d;
      real *restrict weight_sum = weight_sums + head, *restrict bias_sum = bias_sums + head;
      if (dweight)
        for (int64_t j = 0; j < d; j++) weight_sum[j] += dy[j] * (x[j] - mean) * r;
      if (dbias) comba_store(bias_sum, dy, d, true);
      if (!dx) continue;
      if (weight)
        for (int64_t j = 0; j < d; j++) u[j] = dy[j] * weight[head + j];
      else
        comba_store(u, dy, d, false);
      real level = 0, projection = 0;
#pragma omp simd reduction(+ : level, projection)
      for (int64_t j = 0; j < d; j++) {
        level += u[j];
        projection += u[j] * (x[j] - mean);
      }
      level /= (real)d;
      projection *= r * r / (real)d;
      for (int64_t j = 0; j < d; j++) u[j] = r * (u[j] - level - (x[j] - mean) * projection);
      comba_store(dx + row * d, u, d, call->accumulate[X]);
    }
  }
  if (dweight) comba_store_blocks(dweight, to_weight, blocks, width, call->accumulate[WEIGHT]);
  if (dbias) comba_store_blocks(dbias, to_bias, blocks, width, call->accumulate[BIAS]);
}

#define EPSILON(value) (&(const comba_norm_attributes){value})
static const comba_case cases[] = {
    {.name = "weight and bias",
     .attributes = EPSILON(1e-5),
     .input = {{COMBA_SHAPE(3, 47, 130)}, {COMBA_SHAPE(130)}, {COMBA_SHAPE(130)}}},
    {.name = "weight, no bias", .attributes = EPSILON(1e-5), .input = {{COMBA_SHAPE(2, 9, 24)}, {COMBA_SHAPE(24)}}},
    {.name = "of each head",
     .attributes = EPSILON(1e-6),
     .input = {{COMBA_SHAPE(2, 130, 3, 24)}, {COMBA_SHAPE(3, 24)}, {COMBA_SHAPE(3, 24)}}},
    {.name = "bias of each head, no weight",
     .attributes = EPSILON(1e-6),
     .input = {{COMBA_SHAPE(5, 2, 7)}, {0}, {COMBA_SHAPE(2, 7)}}},
    {.name = "long rows",
     .attributes = EPSILON(1e-5),
     .input = {{COMBA_SHAPE(3, 2, 301)}, {COMBA_SHAPE(301)}, {COMBA_SHAPE(301)}}},
    {.name = "neither, one row", .attributes = EPSILON(1e-6), .input = {{COMBA_SHAPE(37)}}},
    {.name = "mean far from zero, large epsilon",
     .attributes = EPSILON(0.5),
     .input = {{COMBA_SHAPE(5, 2, 18), COMBA_FILL_UNIFORM, .low = 9, .high = 11}, {0}, {COMBA_SHAPE(18)}}},
    {.name = "2048 x 1024",
     .attributes = EPSILON(1e-6),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(1024)}, {COMBA_SHAPE(1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_layer_norm) = {
    .name = "layer_norm",
    .formula = "y = (x - mean) / sqrt(variance + epsilon) weight + bias",
    .inputs = 3,
    .outputs = 1,
    .optional_inputs = 1u << WEIGHT | 1u << BIAS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_norm_attributes),
    .backward_inputs = 1u << X | 1u << WEIGHT,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
