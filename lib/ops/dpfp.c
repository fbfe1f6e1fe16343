/* The feature map of deterministic parameter-free projection (arXiv 2102.11174). Of x (..., n), with r = (relu(x), relu(-x)):
 *   y (..., rolls, 2n), flattened: y_{j,i} = r_i r_{i-j}, j = 1 to rolls, indices of r modulo 2n
 *   dr_i = sum over j of dy_{j,i} r_{i-j} + dy_{j,i+j} r_{i+j};  dx_i = [x_i > 0] dr_i - [x_i < 0] dr_{n+i}
 * As fla has it (one_sided), r = (relu(x), -relu(x)) and dx_i = [x_i > 0] (dr_i - dr_{n+i}). */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

static comba_status infer(comba_signature *s) {
  const comba_dpfp_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[0];
  if (!comba_extent_fits(x, 0)) return comba_fail_shape(s, 0, "(..., n)");
  if (attributes->rolls < 1 || attributes->rolls > 2 * comba_last(x))
    return comba_fail(COMBA_ERROR_ARGUMENT, "dpfp: rolls is %lld, expected 1 to 2 n = %lld",
                      (long long)attributes->rolls, (long long)(2 * comba_last(x)));
  s->outputs = 1;
  s->output[0] = *x;
  s->output[0].size[x->rank - 1] *= 2 * attributes->rolls;
  return comba_extent_fits(&s->output[0], 0) ? COMBA_OK : comba_fail_extent(s, &s->output[0]);
}

/* r_i, -2n <= i < 4n */
static real rectified(const real *x, int64_t n, int64_t i, bool one_sided) {
  i += i < 0 ? 2 * n : (i < 2 * n ? 0 : -2 * n);
  if (i < n) return x[i] > 0 ? x[i] : 0;
  return one_sided == (x[i - n] > 0) ? -x[i - n] : 0;
}

static void forward(const comba_call *call) {
  const comba_dpfp_attributes *attributes = call->attributes;
  const int64_t rows = comba_rows(&call->input[0].shape), n = comba_last(&call->input[0].shape);
  const int64_t rolls = attributes->rolls;
  const bool one_sided = attributes->one_sided;
#pragma omp parallel for if (rows * n * rolls > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *x = (const real *)call->input[0].data + row * n;
    real *y = (real *)call->output[0].data + row * 2 * n * rolls;
    for (int64_t j = 1; j <= rolls; j++, y += 2 * n)
      for (int64_t i = 0; i < 2 * n; i++) y[i] = rectified(x, n, i, one_sided) * rectified(x, n, i - j, one_sided);
  }
}

/* dr_i of one row */
static real slope(const real *x, int64_t n, const comba_dpfp_attributes *attributes, const real *dy, int64_t i) {
  const bool one_sided = attributes->one_sided;
  real sum = 0;
  for (int64_t j = 1; j <= attributes->rolls; j++, dy += 2 * n) {
    const int64_t later = i + j < 2 * n ? i + j : i + j - 2 * n;
    sum += dy[i] * rectified(x, n, i - j, one_sided) + dy[later] * rectified(x, n, i + j, one_sided);
  }
  return sum;
}

static void backward(const comba_call *call) {
  const comba_dpfp_attributes *attributes = call->attributes;
  const int64_t rows = comba_rows(&call->input[0].shape), n = comba_last(&call->input[0].shape);
  const int64_t rolls = attributes->rolls;
  const bool one_sided = attributes->one_sided;
  if (comba_gradient_absent(call, 1) || !call->input_gradient[0].data) return;
#pragma omp parallel for if (rows * n * rolls > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *x = (const real *)call->input[0].data + row * n;
    const real *dy = (const real *)call->output_gradient[0].data + row * 2 * n * rolls;
    real *dx = (real *)call->input_gradient[0].data + row * n;
    for (int64_t i = 0; i < n; i++) {
      real to_x = x[i] > 0 ? slope(x, n, attributes, dy, i) : 0;
      if (one_sided ? x[i] > 0 : x[i] < 0) to_x -= slope(x, n, attributes, dy, n + i);
      dx[i] = (call->accumulate[0] ? dx[i] : 0) + to_x;
    }
  }
}

#define ROLLS(count, one_sided) (&(const comba_dpfp_attributes){count, one_sided})
static const comba_case cases[] = {
    {.name = "heads", .attributes = ROLLS(4, false), .input = {{COMBA_SHAPE(2, 47, 3, 16)}}},
    {.name = "as many rolls as features", .attributes = ROLLS(6, false), .input = {{COMBA_SHAPE(5, 3)}}},
    {.name = "one side", .attributes = ROLLS(4, true), .input = {{COMBA_SHAPE(2, 47, 3, 16)}}},
    {.name = "one channel", .attributes = ROLLS(1, false), .input = {{COMBA_SHAPE(37, 1)}}},
    {.name = "2048 x 16 x 64",
     .attributes = ROLLS(4, false),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 16, 64)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_dpfp) = {
    .name = "dpfp",
    .formula = "y_{j,i} = r_i r_{i-j}, r = (relu(x), relu(-x) or -relu(x))",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_dpfp_attributes),
    .backward_inputs = 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
