/* w (B,N) = softmax over n of scores (B,N,1);  y (B,d) = sum over n of w[b, n] x[b, n]
 * dx[b, n] = w[b, n] dy[b];  dscores[b, n] = w[b, n] dy[b] . (x[b, n] - y[b]) */
#include "ops/extent.h"
#include "ops/gradient.h"

enum { X, SCORES };
enum { WEIGHTS }; /* saved: w (B,N) */

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *scores = &s->input[SCORES];
  if (!comba_extent_fits(x, 3)) return comba_fail_shape(s, X, "(B, N, d)");
  if (!comba_shape_equal(scores, &COMBA_SHAPE(x->size[0], x->size[1], 1)))
    return comba_fail_shape(s, SCORES, "(B, N, 1) with B and N as in x");
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(x->size[0], x->size[2]);
  s->saved = 1;
  s->saved_shape[WEIGHTS] = COMBA_SHAPE(x->size[0], x->size[1]);
  s->forward_workspace = x->size[0] * x->size[1]; /* w, where it is not saved */
  s->forward_flops = 2.0 * (double)comba_shape_elements(x);
  s->backward_flops = 2 * s->forward_flops;
  return COMBA_OK;
}

static void softmax(const real *scores, int64_t n, real *weights) {
  real largest = scores[0], sum = 0;
  for (int64_t i = 1; i < n; i++) largest = scores[i] > largest ? scores[i] : largest;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    weights[i] = comba_exp(scores[i] - largest);
    sum += weights[i];
  }
  for (int64_t i = 0; i < n; i++) weights[i] /= sum;
}

static void forward(const comba_call *call) {
  const int64_t *size = call->input[X].shape.size;
  const int64_t batch = size[0], tokens = size[1], d = size[2];
  const real *x = call->input[X].data, *scores = call->input[SCORES].data;
  real *y = call->output[0].data, *saved = call->saved[WEIGHTS].data ? call->saved[WEIGHTS].data : call->workspace;
#pragma omp parallel for
  for (int64_t b = 0; b < batch; b++) {
    real *weights = saved + b * tokens, *out = y + b * d;
    softmax(scores + b * tokens, tokens, weights);
    memset(out, 0, (size_t)d * sizeof(real));
    for (int64_t n = 0; n < tokens; n++) {
      const real *row = x + (b * tokens + n) * d;
      for (int64_t j = 0; j < d; j++) out[j] += weights[n] * row[j];
    }
  }
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 2)) return;
  const int64_t *size = call->input[X].shape.size;
  const int64_t batch = size[0], tokens = size[1], d = size[2];
  const bool accumulate_x = call->accumulate[X], accumulate_scores = call->accumulate[SCORES];
  const real *x = call->input[X].data, *y = call->output[0].data, *weights = call->saved[WEIGHTS].data;
  const real *dy = call->output_gradient[0].data;
  real *dx = call->input_gradient[X].data, *dscores = call->input_gradient[SCORES].data;
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; b++)
    for (int64_t n = 0; n < tokens; n++) {
      const int64_t token = b * tokens + n;
      const real *in = dy + b * d, weight = weights[token];
      if (dscores) {
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < d; j++) sum += in[j] * (x[token * d + j] - y[b * d + j]);
        dscores[token] = weight * sum + (accumulate_scores ? dscores[token] : 0);
      }
      if (dx)
        for (int64_t j = 0; j < d; j++) dx[token * d + j] = weight * in[j] + (accumulate_x ? dx[token * d + j] : 0);
    }
}

static const comba_case cases[] = {
    {.name = "small", .input = {{COMBA_SHAPE(3, 5, 7)}, {COMBA_SHAPE(3, 5, 1)}}},
    {.name = "one token, one channel", .input = {{COMBA_SHAPE(2, 1, 1)}, {COMBA_SHAPE(2, 1, 1)}}},
    {.name = "saturated scores",
     .input = {{COMBA_SHAPE(2, 65, 33)}, {COMBA_SHAPE(2, 65, 1), COMBA_FILL_INDEX, .low = -80, .high = 80}}},
    {.name = "64 x 256 x 256", .benchmark = true, .input = {{COMBA_SHAPE(64, 256, 256)}, {COMBA_SHAPE(64, 256, 1)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_sequence_pool) = {
    .name = "sequence_pool",
    .formula = "y = sum over tokens of softmax(scores) x",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1u << X,
    .backward_outputs = 1u << 0,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
