/* y (B, H W, C)[b, n, c] = x (B, C, H, W)[b, c, n]
 * dx[b, c, n] = dy[b, n, c] */
#include "ops/extent.h"
#include "ops/gradient.h"

enum { X };
enum { TILE = 32 }; /* side of the squares that are transposed at a time: reads and writes use whole cache lines */

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  if (!comba_extent_fits(x, 4)) return comba_fail_shape(s, X, "(B, C, H, W)");
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(x->size[0], x->size[2] * x->size[3], x->size[1]);
  return COMBA_OK;
}

/* to (batch, columns, rows) = or += from (batch, rows, columns) with the last two swapped */
static void transpose(const real *from, int64_t batch, int64_t rows, int64_t columns, bool accumulate, real *to) {
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; b++)
    for (int64_t top = 0; top < rows; top += TILE) {
      const real *x = from + b * rows * columns;
      real *y = to + b * rows * columns;
      const int64_t bottom = top + TILE < rows ? top + TILE : rows;
      for (int64_t left = 0; left < columns; left += TILE) {
        const int64_t right = left + TILE < columns ? left + TILE : columns;
        for (int64_t column = left; column < right; column++)
          for (int64_t row = top; row < bottom; row++)
            y[column * rows + row] = x[row * columns + column] + (accumulate ? y[column * rows + row] : 0);
      }
    }
}

static void forward(const comba_call *call) {
  const comba_shape *x = &call->input[X].shape;
  transpose(call->input[X].data, x->size[0], x->size[1], x->size[2] * x->size[3], false, call->output[0].data);
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[X].data) return;
  const comba_shape *x = &call->input[X].shape;
  transpose(call->output_gradient[0].data, x->size[0], x->size[2] * x->size[3], x->size[1], call->accumulate[X],
            call->input_gradient[X].data);
}

static const comba_case cases[] = {
    {.name = "3 x 5 grid", .input = {{COMBA_SHAPE(2, 7, 3, 5)}}},
    {.name = "one channel, one pixel", .input = {{COMBA_SHAPE(3, 1, 1, 1)}}},
    {.name = "more than one tile", .input = {{COMBA_SHAPE(2, 35, 9, 8)}}},
    {.name = "64 images of 256 x 16 x 16", .benchmark = true, .input = {{COMBA_SHAPE(64, 256, 16, 16)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_channels_to_tokens) = {
    .name = "channels_to_tokens",
    .formula = "y[b, n, c] = x[b, c, n]",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
