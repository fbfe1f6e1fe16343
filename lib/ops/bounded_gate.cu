/* f = l + (1 - l) sigmoid(x);  g = max(-100, ln f);  k = 1 - f, x (B,T,H,K), with l from the softmax over layers of bounds (L,H K);
 * formulas as bounded_gate.c has them. */
#include "ops/cuda_gates.h"
#include "ops/cuda_rows.h"

enum { X, BOUNDS };
enum { G, KEY };
static const float FLOOR = -100;

/* Workspace: the lower bound of each channel; backward its gradient, and partial sums of that. */
static comba_status infer(comba_signature *s) {
  const int64_t *size = s->input[X].size, channels = size[2] * size[3];
  s->backward_workspace = 2 * channels + cuda_columns_workspace(size[0] * size[1], channels);
  return COMBA_OK;
}

/* One column of the softmax: its largest entry, the sum of exponentials, and the lower bound of `layer`. */
struct column {
  float largest, sum, bound;
};

static __device__ column column_of(const float *bounds, int64_t layers, int64_t channels, int64_t layer, int64_t c) {
  column y = {bounds[c], 0, 0};
  for (int64_t m = 1; m < layers; m++) y.largest = fmaxf(y.largest, bounds[m * channels + c]);
  for (int64_t m = 0; m < layers; m++) {
    const float power = expf(bounds[m * channels + c] - y.largest);
    y.sum += power;
    if (m >= 1 && m <= layer) y.bound += power;
  }
  y.bound /= y.sum;
  return y;
}

/* lower (H K) */
static void find_bounds(const comba_call *call, int64_t channels, float *lower) {
  const int64_t layer = ((const comba_bounded_gate_attributes *)call->attributes)->layer;
  const int64_t layers = call->input[BOUNDS].shape.size[0];
  const float *bounds = (const float *)call->input[BOUNDS].data;
  comba_each(channels, [=] __device__(int64_t c) {
    lower[c] = bounds && layer ? column_of(bounds, layers, channels, layer, c).bound : 0;
  });
}

template <class T> static void forward(const comba_call *call) {
  const int64_t *size = call->input[X].shape.size, channels = size[2] * size[3];
  const T *x = (const T *)call->input[X].data;
  float *g = (float *)call->output[G].data, *lower = (float *)call->workspace;
  T *k = (T *)call->output[KEY].data;
  find_bounds(call, channels, lower);
  comba_each(comba_shape_elements(&call->input[X].shape), [=] __device__(int64_t i) {
    const float l = lower[i % channels], value = load(x + i);
    const float log_f = l > 0 ? logf(l + (1 - l) * precise_sigmoid(value)) : -softplus(-value);
    g[i] = log_f < FLOOR ? FLOOR : log_f;
    store(k + i, (1 - l) * precise_sigmoid(-value));
  });
}

static void bounds_gradient(const comba_call *call, int64_t channels, const float *to_lower) {
  const int64_t layer = ((const comba_bounded_gate_attributes *)call->attributes)->layer;
  const int64_t layers = call->input[BOUNDS].shape.size[0];
  const float *bounds = (const float *)call->input[BOUNDS].data;
  float *gradient = (float *)call->input_gradient[BOUNDS].data;
  const bool accumulate = call->accumulate[BOUNDS];
  comba_each(channels, [=] __device__(int64_t c) {
    const column y = column_of(bounds, layers, channels, layer, c);
    for (int64_t m = 0; m < layers; m++) {
      const int64_t at = m * channels + c;
      const float share = expf(bounds[at] - y.largest) / y.sum, raised = m >= 1 && m <= layer;
      put(gradient + at, layer ? share * (raised - y.bound) * to_lower[c] : 0, accumulate);
    }
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t *size = call->input[X].shape.size, tokens = size[0] * size[1], channels = size[2] * size[3];
  const T *x = (const T *)call->input[X].data, *dk = (const T *)call->output_gradient[KEY].data;
  const float *g = (const float *)call->output[G].data, *dg = (const float *)call->output_gradient[G].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *lower = (float *)call->workspace, *to_lower = lower + channels, *partial = to_lower + channels;
  const bool add_x = call->accumulate[X];
  const auto to_log = [=] __device__(int64_t i) { return dg && g[i] > FLOOR ? dg[i] : 0; };
  const auto to_key = [=] __device__(int64_t i) { return dk ? load(dk + i) : 0; };
  find_bounds(call, channels, lower);
  if (dx)
    comba_each(tokens * channels, [=] __device__(int64_t i) {
      const float l = lower[i % channels], open = precise_sigmoid(load(x + i)), shut = precise_sigmoid(-load(x + i));
      /* sigmoid(x) / f is 1 without a bound, where both may be tiny */
      const float ratio = l > 0 ? open / (l + (1 - l) * open) : 1;
      put(dx + i, (1 - l) * shut * (to_log(i) * ratio - to_key(i) * open), add_x);
    });
  if (!call->input_gradient[BOUNDS].data) return;
  cuda_sum_columns(
      tokens, channels,
      [=] __device__(int64_t token, int64_t c) {
        const int64_t i = token * channels + c;
        const float l = lower[c], open = precise_sigmoid(load(x + i)), shut = precise_sigmoid(-load(x + i));
        return l > 0 ? shut * (to_log(i) / (l + (1 - l) * open) - to_key(i)) : 0;
      },
      partial, false, to_lower);
  bounds_gradient(call, channels, to_lower);
}

COMBA_CUDA_ROW(bounded_gate, infer);
