/* norm = sqrt(sum of gradient^2 over all slabs)
 * factor = 0 if the norm is not finite, else min(1, max_norm / norm), 1 if max_norm <= 0;  clip (2) = {norm, factor}
 *
 * The squares are summed in double: they stay finite for every finite float, and tens of millions of them lose
 * nothing. */
#include "core/parallel.h"
#include "ops/extent.h"
#include "ops/ops.h"

enum { SETTINGS, GRADIENT1, GRADIENT2 };

static comba_status infer(comba_signature *s) {
  if (!comba_shape_equal(&s->input[SETTINGS], &COMBA_SHAPE(COMBA_ADAMW_SETTINGS)))
    return comba_fail_shape(s, SETTINGS, "(8)");
  if (!comba_extent_fits(&s->input[GRADIENT1], 0)) return comba_fail_shape(s, GRADIENT1, "(...)");
  if (s->input[GRADIENT2].rank && !comba_extent_fits(&s->input[GRADIENT2], 0))
    return comba_fail_shape(s, GRADIENT2, "(...)");
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(2);
  return COMBA_OK;
}

static double sum_of_squares(const comba_view *slab) {
  if (!slab->data) return 0;
  const int64_t n = comba_shape_elements(&slab->shape), blocks = comba_blocks(n, 4096);
  const real *x = slab->data;
  double partial[COMBA_BLOCKS], total = 0;
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(n, blocks, block + 1);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = comba_block_start(n, blocks, block); i < end; i++) sum += (double)x[i] * (double)x[i];
    partial[block] = sum;
  }
  for (int64_t block = 0; block < blocks; block++) total += partial[block];
  return total;
}

static void forward(const comba_call *call) {
  const real *settings = call->input[SETTINGS].data, largest = settings[COMBA_ADAMW_MAX_NORM];
  real *clip = call->output[0].data;
  const real norm = (real)sqrt(sum_of_squares(&call->input[GRADIENT1]) + sum_of_squares(&call->input[GRADIENT2]));
  clip[0] = norm;
  clip[1] = !isfinite(norm) ? 0 : (largest > 0 && norm > largest ? largest / norm : 1);
}

#define SETTINGS_WITH(low_, high_)                                                                                     \
  { COMBA_SHAPE(COMBA_ADAMW_SETTINGS), COMBA_FILL_UNIFORM, .low = low_, .high = high_ }

static const comba_case cases[] = {
    {.name = "two slabs, clipped", .input = {SETTINGS_WITH(0.5, 1), {COMBA_SHAPE(1003)}, {COMBA_SHAPE(17)}}},
    {.name = "one slab, below the bound", .input = {SETTINGS_WITH(100, 200), {COMBA_SHAPE(3, 7)}}},
    {.name = "no bound", .input = {SETTINGS_WITH(0, 0), {COMBA_SHAPE(300, 100)}, {COMBA_SHAPE(1)}}},
    {.name = "squares beyond float", .input = {SETTINGS_WITH(0.5, 1), {COMBA_SHAPE(50), .scale = 1e30}}},
    {.name = "all zero", .input = {SETTINGS_WITH(0.5, 1), {COMBA_SHAPE(9), COMBA_FILL_UNIFORM}}},
    {.name = "2^24 and 2^20 values",
     .benchmark = true,
     .input = {SETTINGS_WITH(0.5, 1), {COMBA_SHAPE(1 << 24)}, {COMBA_SHAPE(1 << 20)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_gradient_clip) = {
    .name = "gradient_clip",
    .formula = "clip = {norm, min(1, max_norm / norm)}",
    .inputs = 3,
    .outputs = 1,
    .optional_inputs = 1u << GRADIENT2,
    .input_class = {COMBA_STATE, COMBA_STATE, COMBA_STATE},
    .output_class = {COMBA_STATE},
    .infer = infer,
    .forward = forward,
    .cases = cases,
};
