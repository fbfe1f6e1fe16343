/* With m = max_j x_j, z = sum_j e^{x_j - m} and L = ln z, for each row x (V) of the logits with target t >= 0:
 *   row = L - (x_t - m);  smoothed = (1 - s) row + s (L - mean_j (x_j - m))
 *   loss (1) = sum of w_t smoothed over those rows / W,  W = sum of w_t, with w_t = weights[t] or 1
 * dx_j = dloss w_t / W (e^{x_j - m} / z - s / V - (1 - s) [j = t]);  0 in ignored rows, which have a negative target
 * l2_warp w: dx_j += dloss w m / rows in every row for the first j with x_j = m, as RWKV trains */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"

enum { LOGITS, TARGETS, WEIGHTS };
enum { LOSS, ROWS };
/* Saved: m and 1 / z of each row. They are kept apart, as m + L would lose the digits of L where m is large. */
enum { STATISTICS };

static int64_t row_count(const comba_shape *logits) {
  return comba_shape_elements(logits) / logits->size[logits->rank - 1];
}

static comba_status infer(comba_signature *s) {
  const comba_shape *logits = &s->input[LOGITS], *targets = &s->input[TARGETS];
  const comba_cross_entropy_attributes *a = s->attributes;
  if (!(a->label_smoothing >= 0 && a->label_smoothing <= 1))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: label_smoothing is %g, expected 0 to 1", s->op, a->label_smoothing);
  if (!(a->l2_warp >= 0 && a->l2_warp < HUGE_VAL))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: l2_warp is %g, expected a finite number >= 0", s->op, a->l2_warp);
  if (!comba_extent_fits(logits, 0) || logits->rank < 2)
    return comba_fail_shape(s, LOGITS, "(..., V) of rank 2 or more");
  comba_shape expected = *logits;
  expected.rank--;
  if (!comba_shape_equal(targets, &expected))
    return comba_fail_shape(s, TARGETS, "the shape of the logits without the last size");
  const comba_shape *weights = &s->input[WEIGHTS];
  if (weights->rank && (weights->rank != 1 || weights->size[0] != logits->size[logits->rank - 1]))
    return comba_fail_shape(s, WEIGHTS, "(V)");
  s->outputs = 2;
  s->output[LOSS] = COMBA_SHAPE(1);
  s->output[ROWS] = expected;
  s->saved = 1;
  s->saved_shape[STATISTICS] = COMBA_SHAPE(row_count(logits), 2);
  return COMBA_OK;
}

/* Loss and statistics of one row; returns the smoothed loss. */
static real row_loss(const real *x, int64_t classes, int32_t target, real smoothing, real *row, real *saved) {
  real largest = x[0], sum = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < classes; j++) largest = x[j] > largest ? x[j] : largest;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < classes; j++) sum += comba_exp(x[j] - largest);
  if (saved) {
    saved[0] = largest;
    saved[1] = 1 / sum;
  }
  const real log_sum = comba_real_log(sum);
  *row = log_sum - (x[target] - largest);
  if (smoothing == 0) return *row;
  real below = 0;
#pragma omp simd reduction(+ : below)
  for (int64_t j = 0; j < classes; j++) below += x[j] - largest;
  return (1 - smoothing) * *row + smoothing * (log_sum - below / (real)classes);
}

static void forward(const comba_call *call) {
  const comba_cross_entropy_attributes *a = call->attributes;
  const int64_t rows = row_count(&call->input[LOGITS].shape);
  const int64_t classes = comba_shape_elements(&call->input[LOGITS].shape) / rows, blocks = comba_blocks(rows, 1);
  const real *x = call->input[LOGITS].data;
  const real *weights = call->input[WEIGHTS].data;
  const int32_t *targets = call->input[TARGETS].data;
  real *loss = call->output[LOSS].data, *row = call->output[ROWS].data, *saved = call->saved[STATISTICS].data;
  double sum[COMBA_BLOCKS] = {0}, weight_sum[COMBA_BLOCKS] = {0};
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(rows, blocks, block + 1);
    for (int64_t i = comba_block_start(rows, blocks, block); i < end; i++) {
      row[i] = 0;
      if (targets[i] < 0) continue;
      const double weight = weights ? (double)weights[targets[i]] : 1;
      sum[block] += weight * (double)row_loss(x + i * classes, classes, targets[i], (real)a->label_smoothing, &row[i],
                                              saved ? saved + 2 * i : NULL);
      weight_sum[block] += weight;
    }
  }
  for (int64_t block = 1; block < blocks; block++) {
    sum[0] += sum[block];
    weight_sum[0] += weight_sum[block];
  }
  *loss = weight_sum[0] > 0 ? (real)(sum[0] / weight_sum[0]) : 0;
}

static int64_t first_largest(const real *x, int64_t classes) {
  int64_t largest = 0;
  for (int64_t j = 1; j < classes; j++)
    if (x[j] > x[largest]) largest = j;
  return largest;
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[LOGITS].data) return;
  const comba_cross_entropy_attributes *a = call->attributes;
  const int64_t rows = row_count(&call->input[LOGITS].shape);
  const int64_t classes = comba_shape_elements(&call->input[LOGITS].shape) / rows;
  const bool accumulate = call->accumulate[LOGITS];
  const real *x = call->input[LOGITS].data, *saved = call->saved[STATISTICS].data;
  const real *weights = call->input[WEIGHTS].data;
  const int32_t *targets = call->input[TARGETS].data;
  real *dx = call->input_gradient[LOGITS].data;
  double weight_sum = 0;
  for (int64_t i = 0; i < rows; i++)
    if (targets[i] >= 0) weight_sum += weights ? (double)weights[targets[i]] : 1;
  const double mean = weight_sum > 0 ? *(const real *)call->output_gradient[LOSS].data / weight_sum : 0;
  const real warp = (real)(a->l2_warp * (double)*(const real *)call->output_gradient[LOSS].data / (double)rows);
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++) {
    const real *in = x + i * classes;
    real *out = dx + i * classes; /* may be in */
    const int64_t first = warp != 0 ? first_largest(in, classes) : 0;
    const real warped = warp != 0 ? warp * in[first] : 0;
    if (targets[i] < 0) {
      if (!accumulate) memset(out, 0, (size_t)classes * sizeof(real));
    } else {
      const double own = weights ? mean * (double)weights[targets[i]] : mean;
      const real every = (real)(own * a->label_smoothing / (double)classes);
      const real largest = saved[2 * i], factor = (real)own * saved[2 * i + 1];
      if (accumulate) {
#pragma omp simd
        for (int64_t j = 0; j < classes; j++) out[j] += factor * comba_exp(in[j] - largest) - every;
      } else {
#pragma omp simd
        for (int64_t j = 0; j < classes; j++) out[j] = factor * comba_exp(in[j] - largest) - every;
      }
      out[targets[i]] -= (real)(own * (1 - a->label_smoothing));
    }
    out[first] += warped;
  }
}

static const comba_case cases[] = {
    {.name = "some rows ignored",
     .input = {{COMBA_SHAPE(3, 9, 7), .scale = 3}, {COMBA_SHAPE(3, 9), COMBA_FILL_INDEX, .low = -3, .high = 7}}},
    {.name = "label smoothing",
     .attributes = &(const comba_cross_entropy_attributes){.label_smoothing = 0.1},
     .input = {{COMBA_SHAPE(70, 33), .scale = 3}, {COMBA_SHAPE(70), COMBA_FILL_INDEX, .low = -5, .high = 33}}},
    {.name = "class weights",
     .attributes = &(const comba_cross_entropy_attributes){.label_smoothing = 0.1},
     .input = {{COMBA_SHAPE(70, 9), .scale = 3},
               {COMBA_SHAPE(70), COMBA_FILL_INDEX, .low = -2, .high = 9},
               {COMBA_SHAPE(9), COMBA_FILL_UNIFORM, .low = 0.1, .high = 3, .no_gradient = true}}},
    {.name = "uniform targets",
     .attributes = &(const comba_cross_entropy_attributes){.label_smoothing = 1},
     .input = {{COMBA_SHAPE(5, 17)}, {COMBA_SHAPE(5), COMBA_FILL_INDEX, .low = 0, .high = 17}}},
    {.name = "all rows ignored",
     .input = {{COMBA_SHAPE(4, 5)}, {COMBA_SHAPE(4), COMBA_FILL_INDEX, .low = -100, .high = 0}}},
    {.name = "one class", .input = {{COMBA_SHAPE(3, 1)}, {COMBA_SHAPE(3), COMBA_FILL_INDEX, .low = 0, .high = 1}}},
    {.name = "saturated logits",
     .attributes = &(const comba_cross_entropy_attributes){.label_smoothing = 0.1},
     .input = {{COMBA_SHAPE(2, 10, 40), COMBA_FILL_UNIFORM, .low = -80, .high = 80},
               {COMBA_SHAPE(2, 10), COMBA_FILL_INDEX, .low = -1, .high = 40}}},
    {.name = "l2_warp", /* is not the slope of the loss: its gradient is not checked by differences */
     .attributes = &(const comba_cross_entropy_attributes){.l2_warp = 0.1},
     .input = {{COMBA_SHAPE(70, 9), .no_gradient = true}, {COMBA_SHAPE(70), COMBA_FILL_INDEX, .low = -2, .high = 9}}},
    {.name = "2048 rows, vocabulary 32000",
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 32000)}, {COMBA_SHAPE(2, 1024), COMBA_FILL_INDEX, .low = 0, .high = 32000}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_cross_entropy) = {
    .name = "cross_entropy",
    .formula = "loss = mean over rows of -sum_j target_j ln softmax(logits)_j",
    .inputs = 3,
    .outputs = 2,
    .optional_inputs = 1u << WEIGHTS,
    .input_class = {COMBA_ACTIVATION, COMBA_INDEX, COMBA_STATE},
    .output_class = {COMBA_STATE, COMBA_STATE}, /* float32 everywhere */
    .attributes_size = sizeof(comba_cross_entropy_attributes),
    .constant_outputs = 1u << ROWS,
    .gradient_over_input = 1u << LOGITS,
    .backward_inputs = 1u << LOGITS | 1u << TARGETS | 1u << WEIGHTS,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
