/* y[direction B + b, i] = x[b, token(direction, i)], one direction or, for bi and cross, two or four
 * dx[b, n] = sum over directions of dy[direction B + b, i], i the place of token n
 *
 * A random order is drawn by Fisher and Yates' exchange: for i from N - 1 down to 1, place i changes with a place drawn
 * from 0 to i, draw (seed, stream + step 2^32, b N + i). Backward draws it again. */
#include "core/random.h"
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/grid_move.h"
#include "ops/ops.h"

enum { X };

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const comba_scan_attributes *a = s->attributes;
  if (!comba_extent_fits(x, 3)) return comba_fail_shape(s, X, "(B, N, d)");
  if ((a->scan == COMBA_SCAN_TRANSPOSE || a->scan == COMBA_SCAN_CROSS) &&
      !comba_grid_holds(a->height, a->width, x->size[1]))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: the grid is %lld x %lld, expected one of %lld tokens", s->op,
                      (long long)a->height, (long long)a->width, (long long)x->size[1]);
  if (a->scan == COMBA_SCAN_RANDOM && x->size[1] > INT32_MAX)
    return comba_fail_shape(s, X, "(B, N, d) with at most 2^31 - 1 tokens for a random scan");
  const comba_grid_scan g = comba_scan_order_grid(a, x);
  if (g.directions == 0 && a->scan != COMBA_SCAN_RANDOM)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: scan is %d, expected flip, transpose, random, bi or cross", s->op,
                      (int)a->scan);
  s->outputs = 1;
  s->output[0] = *x;
  if (g.directions) s->output[0].size[0] *= g.directions;
  if (!comba_extent_fits(&s->output[0], 3)) return comba_fail_extent(s, &s->output[0]);
  if (a->scan == COMBA_SCAN_RANDOM) s->forward_workspace = s->backward_workspace = x->size[0] * x->size[1];
  return COMBA_OK;
}

/* tokens (N): the order of sample `b` */
static void draw_order(const comba_call *call, int64_t b, int64_t n, int32_t *tokens) {
  const comba_scan_attributes *a = call->attributes;
  const uint64_t seed = call->run->seed, stream = a->stream + (call->run->step << 32);
  for (int64_t i = 0; i < n; i++) tokens[i] = (int32_t)i;
  for (int64_t i = n - 1; i > 0; i--) {
    const uint64_t other = comba_random_below(seed, stream, (uint64_t)(b * n + i), (uint64_t)i + 1);
    const int32_t token = tokens[i];
    tokens[i] = tokens[other];
    tokens[other] = token;
  }
}

static void forward(const comba_call *call) {
  const comba_scan_attributes *a = call->attributes;
  const comba_grid_scan g = comba_scan_order_grid(a, &call->input[X].shape);
  const real *x = call->input[X].data;
  real *y = call->output[0].data;
  if (a->scan != COMBA_SCAN_RANDOM) {
    comba_grid_spread(&g, x, 1, false, y);
    return;
  }
#pragma omp parallel for
  for (int64_t b = 0; b < g.batch; b++) {
    int32_t *tokens = (int32_t *)call->workspace + b * g.tokens;
    draw_order(call, b, g.tokens, tokens);
    for (int64_t i = 0; i < g.tokens; i++)
      memcpy(y + (b * g.tokens + i) * g.channels, x + (b * g.tokens + tokens[i]) * g.channels,
             (size_t)g.channels * sizeof(real));
  }
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[X].data) return;
  const comba_scan_attributes *a = call->attributes;
  const comba_grid_scan g = comba_scan_order_grid(a, &call->input[X].shape);
  const bool accumulate = call->accumulate[X];
  const real *dy = call->output_gradient[0].data;
  real *dx = call->input_gradient[X].data;
  if (a->scan != COMBA_SCAN_RANDOM) {
    comba_grid_gather(&g, dy, 1, accumulate, dx);
    return;
  }
#pragma omp parallel for
  for (int64_t b = 0; b < g.batch; b++) {
    int32_t *tokens = (int32_t *)call->workspace + b * g.tokens;
    draw_order(call, b, g.tokens, tokens);
    for (int64_t i = 0; i < g.tokens; i++) {
      const real *in = dy + (b * g.tokens + i) * g.channels;
      real *out = dx + (b * g.tokens + tokens[i]) * g.channels;
      for (int64_t j = 0; j < g.channels; j++) out[j] = in[j] + (accumulate ? out[j] : 0);
    }
  }
}

static const comba_case cases[] = {
    {.name = "flip", .input = {{COMBA_SHAPE(2, 7, 5)}}},
    {.name = "transpose, 3 x 5",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_TRANSPOSE, .height = 3, .width = 5},
     .input = {{COMBA_SHAPE(2, 15, 3)}}},
    {.name = "random",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_RANDOM, .stream = 5},
     .input = {{COMBA_SHAPE(3, 13, 4)}}},
    {.name = "random, one token",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_RANDOM},
     .input = {{COMBA_SHAPE(2, 1, 3)}}},
    {.name = "bi",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_BI},
     .input = {{COMBA_SHAPE(2, 9, 4)}}},
    {.name = "bi, 24 channels",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_BI},
     .input = {{COMBA_SHAPE(3, 6, 24)}}},
    {.name = "cross, 4 x 3",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_CROSS, .height = 4, .width = 3},
     .input = {{COMBA_SHAPE(2, 12, 5)}}},
    {.name = "cross, 64 x 14 x 14 x 384",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_CROSS, .height = 14, .width = 14},
     .benchmark = true,
     .input = {{COMBA_SHAPE(64, 196, 384)}}},
    {.name = "random, 64 x 196 x 384",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_RANDOM},
     .benchmark = true,
     .input = {{COMBA_SHAPE(64, 196, 384)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_scan_order) = {
    .name = "scan_order",
    .formula = "y = the tokens of x in one, two or four orders of their grid",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_scan_attributes),
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
