/* y[b, n] = scale * sum over directions of x[direction B + b, place(direction, n)]; bi adds both as they come, while
 * bi_aligned and cross put each direction back in place; scale = 1, or 1 / directions with `average`
 * dx[direction B + b, i] = scale * dy[b, token(direction, i)] */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/grid_move.h"
#include "ops/ops.h"

enum { X };

static real scale(const comba_scan_attributes *a, const comba_grid_scan *g) {
  return a->average ? 1 / (real)g->directions : 1;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const comba_scan_attributes *a = s->attributes;
  if (!comba_extent_fits(x, 3)) return comba_fail_shape(s, X, "(directions B, N, d)");
  const comba_grid_scan g = comba_scan_merge_grid(a, x);
  if (g.directions == 0)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: scan is %d, expected bi, bi_aligned or cross", s->op, (int)a->scan);
  if (x->size[0] % g.directions) return comba_fail_shape(s, X, g.directions == 2 ? "(2 B, N, d)" : "(4 B, N, d)");
  if (a->scan == COMBA_SCAN_CROSS && !comba_grid_holds(a->height, a->width, g.tokens))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: the grid is %lld x %lld, expected one of %lld tokens", s->op,
                      (long long)a->height, (long long)a->width, (long long)g.tokens);
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(g.batch, g.tokens, g.channels);
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const comba_grid_scan g = comba_scan_merge_grid(call->attributes, &call->input[X].shape);
  comba_grid_gather(&g, call->input[X].data, scale(call->attributes, &g), false, call->output[0].data);
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[X].data) return;
  const comba_grid_scan g = comba_scan_merge_grid(call->attributes, &call->input[X].shape);
  comba_grid_spread(&g, call->output_gradient[0].data, scale(call->attributes, &g), call->accumulate[X],
                    call->input_gradient[X].data);
}

static const comba_case cases[] = {
    {.name = "bi",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_BI},
     .input = {{COMBA_SHAPE(4, 9, 5)}}},
    {.name = "bi_aligned, average",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_BI_ALIGNED, .average = true},
     .input = {{COMBA_SHAPE(6, 7, 3)}}},
    {.name = "bi_aligned, 72 channels",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_BI_ALIGNED},
     .input = {{COMBA_SHAPE(4, 6, 72)}}},
    {.name = "cross, 3 x 5",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_CROSS, .height = 3, .width = 5},
     .input = {{COMBA_SHAPE(8, 15, 4)}}},
    {.name = "cross, 4 x 2, average",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_CROSS, .height = 4, .width = 2, .average = true},
     .input = {{COMBA_SHAPE(4, 8, 3)}}},
    {.name = "cross, 64 x 14 x 14 x 384",
     .attributes = &(const comba_scan_attributes){.scan = COMBA_SCAN_CROSS, .height = 14, .width = 14},
     .benchmark = true,
     .input = {{COMBA_SHAPE(256, 196, 384)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_scan_merge) = {
    .name = "scan_merge",
    .formula = "y = sum (or mean) of what came out of two or four orders of a grid",
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
