/* y (..., 2n) = softmax(2 x, -2 x), x (..., n): the feature map of Hedgehog (arXiv 2402.04347), with the factor 2 that
 * flash-linear-attention has.
 *
 *   dx_j = 2 (y_j (dy_j - m) - y_{n+j} (dy_{n+j} - m)),  m = <y, dy>
 *
 * The largest of the exponents is that of |x|, so the sum is of e^{2 (+-x_j - max |x|)}. The backward pass reads y alone. */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[0];
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, 0, "(..., n)");
  s->outputs = 1;
  s->output[0] = *x;
  s->output[0].size[x->rank - 1] *= 2;
  return comba_extent_fits(&s->output[0], 0) ? COMBA_OK : comba_fail_extent(s, &s->output[0]);
}

static void forward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[0].shape), n = comba_last(&call->input[0].shape);
#pragma omp parallel for if (rows * n > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *x = (const real *)call->input[0].data + row * n;
    real *y = (real *)call->output[0].data + row * 2 * n, largest = 0, sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < n; j++) largest = comba_real_abs(x[j]) > largest ? comba_real_abs(x[j]) : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
      y[j] = comba_exp(2 * (x[j] - largest));
      y[n + j] = comba_exp(2 * (-x[j] - largest));
      sum += y[j] + y[n + j];
    }
    const real r = 1 / sum;
    for (int64_t j = 0; j < 2 * n; j++) y[j] *= r;
  }
}

static void backward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[0].shape), n = comba_last(&call->input[0].shape);
  if (comba_gradient_absent(call, 1) || !call->input_gradient[0].data) return;
#pragma omp parallel for if (rows * n > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *y = (const real *)call->output[0].data + row * 2 * n;
    const real *dy = (const real *)call->output_gradient[0].data + row * 2 * n;
    real *dx = (real *)call->input_gradient[0].data + row * n;
    const real mean = comba_dot(y, dy, 2 * n);
    const bool accumulate = call->accumulate[0];
    for (int64_t j = 0; j < n; j++) {
      const real slope = 2 * (y[j] * (dy[j] - mean) - y[n + j] * (dy[n + j] - mean));
      dx[j] = (accumulate ? dx[j] : 0) + slope;
    }
  }
}

static const comba_case cases[] = {
    {.name = "heads", .input = {{COMBA_SHAPE(2, 47, 3, 64)}}},
    {.name = "one channel", .input = {{COMBA_SHAPE(37, 1)}}},
    /* whole numbers, exact in bfloat16 too: rounding an exponent of 200 would multiply y */
    {.name = "saturated", .input = {{COMBA_SHAPE(11, 100), COMBA_FILL_INDEX, .low = -110, .high = 110}}},
    {.name = "2048 x 16 x 64", .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 16, 64)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_hedgehog) = {
    .name = "hedgehog",
    .formula = "y = softmax(2 x, -2 x)",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .backward_outputs = 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
