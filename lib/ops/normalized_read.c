/* What mLSTM reads from its memory (xLSTM, arXiv 2405.04517, Eq. 21): y (B,T,H,V+1) holds q C and, last, q n, both in
 * the scale e^m of the gates, so that the paper's lower bound 1 of the normaliser is e^-m:
 *   h = y_{0..V-1} r,  r = 1 / (max(|y_V|, e^-m) + epsilon)
 *   dy = r dh;  with D = r <dh, h>:  dy_V = -sign(y_V) D where |y_V| is the larger, else dm = e^-m D */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { Y, MAXIMUM };

static comba_status infer(comba_signature *s) {
  const comba_norm_attributes *attributes = s->attributes;
  const comba_shape *y = &s->input[Y];
  if (!comba_extent_fits(y, 4) || y->size[3] < 2) return comba_fail_shape(s, Y, "(B, T, H, V + 1)");
  if (!comba_shape_equal(&s->input[MAXIMUM], &COMBA_SHAPE(y->size[0], y->size[1], y->size[2])))
    return comba_fail_shape(s, MAXIMUM, "(B, T, H), as y");
  s->outputs = 1;
  s->output[0] = *y;
  s->output[0].size[3]--;
  return comba_infer_epsilon(s, attributes->epsilon);
}

/* e^-m may be infinite: m falls without end where a head forgets and takes nothing in; then r is 0. */
static real reciprocal(real normalizer, real m, real epsilon) {
  const real size = comba_real_abs(normalizer), bound = comba_exp(-m);
  return 1 / ((size > bound ? size : bound) + epsilon);
}

static void forward(const comba_call *call) {
  const real epsilon = (real)((const comba_norm_attributes *)call->attributes)->epsilon;
  const int64_t rows = comba_rows(&call->input[Y].shape), V = comba_last(&call->output[0].shape);
  const real *m = call->input[MAXIMUM].data;
#pragma omp parallel for if (rows * V > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *y = (const real *)call->input[Y].data + row * (V + 1);
    comba_store_scaled((real *)call->output[0].data + row * V, reciprocal(y[V], m[row], epsilon), y, V, false);
  }
}

static void backward(const comba_call *call) {
  const real epsilon = (real)((const comba_norm_attributes *)call->attributes)->epsilon;
  const int64_t rows = comba_rows(&call->input[Y].shape), V = comba_last(&call->output[0].shape);
  const real *m = call->input[MAXIMUM].data;
  real *dm = call->input_gradient[MAXIMUM].data;
  if (comba_gradient_absent(call, 2)) return;
#pragma omp parallel for if (rows * V > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *y = (const real *)call->input[Y].data + row * (V + 1);
    const real *dh = (const real *)call->output_gradient[0].data + row * V;
    const real r = reciprocal(y[V], m[row], epsilon), read = r * comba_dot(dh, y, V);
    const bool bounded = comba_real_abs(y[V]) <= comba_exp(-m[row]);
    if (call->input_gradient[Y].data) {
      real *dy = (real *)call->input_gradient[Y].data + row * (V + 1);
      const real to_normalizer = bounded ? 0 : (y[V] > 0 ? -r : r) * read;
      comba_store_scaled(dy, r, dh, V, call->accumulate[Y]);
      dy[V] = (call->accumulate[Y] ? dy[V] : 0) + to_normalizer;
    }
    if (!dm) continue;
    /* e^-m r, which stays finite where e^-m does not */
    const real to_bound = bounded ? read / (1 + epsilon * comba_exp(m[row])) : 0;
    dm[row] = (call->accumulate[MAXIMUM] ? dm[row] : 0) + to_bound;
  }
}

static const comba_norm_attributes exact = {0}, guarded = {1e-2};

static const comba_case cases[] = {
    {.name = "either side", .attributes = &exact, .input = {{COMBA_SHAPE(2, 40, 3, 17)}, {COMBA_SHAPE(2, 40, 3)}}},
    {.name = "epsilon", .attributes = &guarded, .input = {{COMBA_SHAPE(1, 9, 2, 6)}, {COMBA_SHAPE(1, 9, 2)}}},
    {.name = "bound far below and far above",
     .attributes = &guarded,
     .input = {{COMBA_SHAPE(1, 20, 1, 4)}, {COMBA_SHAPE(1, 20, 1), .scale = 60}}},
    {.name = "2048 x 16 x 64",
     .benchmark = true,
     .attributes = &guarded,
     .input = {{COMBA_SHAPE(2, 1024, 16, 65)}, {COMBA_SHAPE(2, 1024, 16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_normalized_read) = {
    .name = "normalized_read",
    .formula = "h = y_{0..V-1} / (max(|y_V|, e^-m) + epsilon)",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_GATE},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_norm_attributes),
    .backward_inputs = 1u << Y | 1u << MAXIMUM,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
