/* HGRN2's forget gate with a lower bound that grows over the layers: with s = softmax over layers of bounds (L,H K) and
 * l = s_1 + ... + s_layer (0 without bounds, and in layer 0)
 *   f = l + (1 - l) sigmoid(x);  g = max(-100, ln f);  k = 1 - f = (1 - l) sigmoid(-x)
 * With df = dg / f - dk:  dx = df (1 - l) sigmoid(x) sigmoid(-x);  dl = sum of df sigmoid(-x) over B and T;
 *   dbounds_m += s_m (1 if 1 <= m <= layer, else 0, minus l) dl. dg is 0 where g is clamped. */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { X, BOUNDS };
enum { G, KEY };
enum { FLOOR = -100 };

static comba_status infer(comba_signature *s) {
  const int64_t layer = ((const comba_bounded_gate_attributes *)s->attributes)->layer;
  const comba_shape *x = &s->input[X], *bounds = &s->input[BOUNDS];
  if (!comba_extent_fits(x, 4)) return comba_fail_shape(s, X, "(B, T, H, K)");
  const int64_t channels = x->size[2] * x->size[3];
  if (bounds->rank && (!comba_extent_fits(bounds, 2) || bounds->size[1] != channels))
    return comba_fail_shape(s, BOUNDS, "(L, H K)");
  if (layer < 0 || (bounds->rank && layer >= bounds->size[0]))
    return comba_fail(COMBA_ERROR_ARGUMENT, "bounded_gate: layer is %lld, expected at least 0 and less than L",
                      (long long)layer);
  s->outputs = 2;
  s->output[G] = s->output[KEY] = *x;
  s->forward_workspace = channels;
  s->backward_workspace = channels * (1 + 2 * comba_row_blocks(x->size[0] * x->size[1], channels));
  return COMBA_OK;
}

/* One column of softmax over layers: its largest entry, the sum of exponentials, and the lower bound of `layer`. */
typedef struct column {
  real largest, sum, bound;
} column;

static column column_of(const real *bounds, int64_t layers, int64_t channels, int64_t layer, int64_t c) {
  column y = {bounds[c], 0, 0};
  for (int64_t m = 1; m < layers; m++)
    y.largest = bounds[m * channels + c] > y.largest ? bounds[m * channels + c] : y.largest;
  for (int64_t m = 0; m < layers; m++) {
    const real power = comba_exp(bounds[m * channels + c] - y.largest);
    y.sum += power;
    y.bound += m >= 1 && m <= layer ? power : 0;
  }
  y.bound /= y.sum;
  return y;
}

/* lower (H K) */
static void find_bounds(const comba_call *call, int64_t channels, real *lower) {
  const int64_t layer = ((const comba_bounded_gate_attributes *)call->attributes)->layer;
  const comba_view *bounds = &call->input[BOUNDS];
  memset(lower, 0, (size_t)channels * sizeof(real));
  if (!bounds->data || !layer) return;
  for (int64_t c = 0; c < channels; c++)
    lower[c] = column_of(bounds->data, bounds->shape.size[0], channels, layer, c).bound;
}

static void forward(const comba_call *call) {
  const int64_t *size = call->input[X].shape.size, tokens = size[0] * size[1], channels = size[2] * size[3];
  real *lower = call->workspace;
  find_bounds(call, channels, lower);
#pragma omp parallel for if (tokens * channels > COMBA_SERIAL / 4)
  for (int64_t token = 0; token < tokens; token++) {
    const real *x = (const real *)call->input[X].data + token * channels;
    real *g = (real *)call->output[G].data + token * channels, *k = (real *)call->output[KEY].data + token * channels;
    for (int64_t c = 0; c < channels; c++) {
      const real l = lower[c], f = l + (1 - l) * comba_sigmoid(x[c]);
      const real log_f = l > 0 ? comba_real_log(f) : -comba_softplus(-x[c]);
      g[c] = log_f < FLOOR ? FLOOR : log_f;
      k[c] = (1 - l) * comba_sigmoid(-x[c]);
    }
  }
}

static void bounds_gradient(const comba_call *call, int64_t channels, const real *to_lower) {
  const int64_t layer = ((const comba_bounded_gate_attributes *)call->attributes)->layer;
  const comba_view *bounds = &call->input[BOUNDS];
  const int64_t layers = bounds->shape.size[0];
  real *gradient = call->input_gradient[BOUNDS].data;
  for (int64_t c = 0; c < channels; c++) {
    const column y = column_of(bounds->data, layers, channels, layer, c);
    for (int64_t m = 0; m < layers; m++) {
      const int64_t at = m * channels + c;
      const real share = comba_exp(((const real *)bounds->data)[at] - y.largest) / y.sum;
      const real value = layer ? share * ((m >= 1 && m <= layer) - y.bound) * to_lower[c] : 0;
      gradient[at] = (call->accumulate[BOUNDS] ? gradient[at] : 0) + value;
    }
  }
}

static void backward(const comba_call *call) {
  const int64_t *size = call->input[X].shape.size, tokens = size[0] * size[1], channels = size[2] * size[3];
  const int64_t blocks = comba_row_blocks(tokens, channels);
  const real *dg = call->output_gradient[G].data, *dk = call->output_gradient[KEY].data, *g = call->output[G].data;
  real *dx = call->input_gradient[X].data, *lower = call->workspace, *partial = lower + channels;
  real *scratch = partial + blocks * channels; /* (blocks, H K) both */
  find_bounds(call, channels, lower);
#pragma omp parallel for if (tokens * channels > COMBA_SERIAL / 4)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(tokens, blocks, block + 1);
    real *sum = partial + block * channels, *slope = scratch + block * channels;
    memset(sum, 0, (size_t)channels * sizeof(real));
    for (int64_t token = comba_block_start(tokens, blocks, block); token < end; token++) {
      const int64_t at = token * channels;
      const real *x = (const real *)call->input[X].data + at;
      for (int64_t c = 0; c < channels; c++) {
        const real l = lower[c], open = comba_sigmoid(x[c]), shut = comba_sigmoid(-x[c]), f = l + (1 - l) * open;
        const real to_log = dg && g[at + c] > FLOOR ? dg[at + c] : 0, to_key = dk ? dk[at + c] : 0;
        /* sigmoid(x) / f is 1 without a bound, where both may be tiny */
        slope[c] = (1 - l) * shut * ((l > 0 ? to_log * open / f : to_log) - to_key * open);
        sum[c] += l > 0 ? shut * (to_log / f - to_key) : 0;
      }
      if (dx) comba_store(dx + at, slope, channels, call->accumulate[X]);
    }
  }
  for (int64_t block = 1; block < blocks; block++) comba_store(partial, partial + block * channels, channels, true);
  if (call->input_gradient[BOUNDS].data) bounds_gradient(call, channels, partial);
}

#define LAYER(layer) (&(const comba_bounded_gate_attributes){layer})
static const comba_case cases[] = {
    {.name = "without bounds", .attributes = LAYER(0), .input = {{COMBA_SHAPE(2, 33, 3, 16)}}},
    {.name = "saturated",
     .attributes = LAYER(0),
     .input = {{COMBA_SHAPE(1, 19, 1, 5), COMBA_FILL_UNIFORM, .low = -90, .high = 30}}},
    {.name = "first of three layers",
     .attributes = LAYER(0),
     .input = {{COMBA_SHAPE(1, 9, 2, 8)}, {COMBA_SHAPE(3, 16)}}},
    {.name = "second of three layers",
     .attributes = LAYER(1),
     .input = {{COMBA_SHAPE(2, 33, 3, 16)}, {COMBA_SHAPE(3, 48)}}},
    {.name = "last layer, more than one block",
     .attributes = LAYER(3),
     .input = {{COMBA_SHAPE(1, 600, 2, 8), COMBA_FILL_UNIFORM, .low = -20, .high = 20}, {COMBA_SHAPE(4, 16)}}},
    {.name = "2048 x 8 x 128",
     .attributes = LAYER(1),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 8, 128)}, {COMBA_SHAPE(4, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_bounded_gate) = {
    .name = "bounded_gate",
    .formula = "f = l + (1 - l) sigmoid(x), g = max(-100, ln f), k = 1 - f, l from softmax over layers of bounds",
    .inputs = 2,
    .outputs = 2,
    .optional_inputs = 1u << BOUNDS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER},
    .output_class = {COMBA_GATE, COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_bounded_gate_attributes),
    .backward_inputs = 1u << X | 1u << BOUNDS,
    .backward_outputs = 1u << G,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
