/* y (B,d) = 1/N sum over n of x (B,N,d)
 * dx[b, n] = dy[b] / N */
#include "ops/extent.h"
#include "ops/gradient.h"

enum { X };
enum { COLUMNS = 128 }; /* channels that one thread sums at a time */

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  if (!comba_extent_fits(x, 3)) return comba_fail_shape(s, X, "(B, N, d)");
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(x->size[0], x->size[2]);
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const int64_t *size = call->input[X].shape.size;
  const int64_t batch = size[0], tokens = size[1], d = size[2];
  const real *x = call->input[X].data;
  real *y = call->output[0].data;
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; b++)
    for (int64_t left = 0; left < d; left += COLUMNS) {
      const int64_t columns = left + COLUMNS < d ? COLUMNS : d - left;
      real sum[COLUMNS] = {0};
      for (int64_t n = 0; n < tokens; n++) {
        const real *row = x + (b * tokens + n) * d + left;
        for (int64_t j = 0; j < columns; j++) sum[j] += row[j];
      }
      for (int64_t j = 0; j < columns; j++) y[b * d + left + j] = sum[j] / (real)tokens;
    }
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[X].data) return;
  const int64_t *size = call->input[X].shape.size;
  const int64_t batch = size[0], tokens = size[1], d = size[2];
  const bool accumulate = call->accumulate[X];
  const real *dy = call->output_gradient[0].data;
  real *dx = call->input_gradient[X].data;
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; b++)
    for (int64_t n = 0; n < tokens; n++) {
      const real *in = dy + b * d;
      real *out = dx + (b * tokens + n) * d;
      for (int64_t j = 0; j < d; j++) out[j] = in[j] / (real)tokens + (accumulate ? out[j] : 0);
    }
}

static const comba_case cases[] = {
    {.name = "small", .input = {{COMBA_SHAPE(3, 5, 7)}}},
    {.name = "one token", .input = {{COMBA_SHAPE(2, 1, 3)}}},
    {.name = "more than one block of columns", .input = {{COMBA_SHAPE(2, 65, 130)}}},
    {.name = "64 x 196 x 768", .benchmark = true, .input = {{COMBA_SHAPE(64, 196, 768)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_mean_pool) = {
    .name = "mean_pool",
    .formula = "y = mean over tokens of x",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
