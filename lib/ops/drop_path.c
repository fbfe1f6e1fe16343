/* y[b] = x[b] / (1 - rate) where draw_b >= rate, else 0; draw_b uniform in (0, 1), element b of the stream
 * dx[b] = dy[b] / (1 - rate) where draw_b >= rate, else 0: the same draws, made again */
#include "core/random.h"
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"

enum { X };

static comba_status infer(comba_signature *s) {
  const comba_dropout_attributes *a = s->attributes;
  if (!comba_extent_fits(&s->input[X], 0)) return comba_fail_shape(s, X, "(B, ...)");
  if (!(a->rate >= 0 && a->rate < 1))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: rate is %g, expected at least 0 and less than 1", s->op, a->rate);
  s->outputs = 1;
  s->output[0] = s->input[X];
  return COMBA_OK;
}

/* y = or += x / (1 - rate), sample by sample of `shape`, where the draw keeps it */
static void mask(const comba_call *call, const comba_shape *shape, const real *x, bool accumulate, real *y) {
  const comba_dropout_attributes *a = call->attributes;
  const uint64_t seed = call->run->seed, stream = a->stream + (call->run->step << 32);
  const int64_t batch = shape->size[0], size = comba_shape_elements(shape) / batch;
  const real scale = (real)(1 / (1 - a->rate));
#pragma omp parallel for
  for (int64_t b = 0; b < batch; b++) {
    const real *in = x + b * size;
    real *out = y + b * size;
    if (comba_random_uniform(seed, stream, (uint64_t)b) >= a->rate)
      for (int64_t i = 0; i < size; i++) out[i] = scale * in[i] + (accumulate ? out[i] : 0);
    else if (!accumulate)
      memset(out, 0, (size_t)size * sizeof(real));
  }
}

static void forward(const comba_call *call) {
  mask(call, &call->input[X].shape, call->input[X].data, false, call->output[0].data);
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[X].data) return;
  mask(call, &call->input[X].shape, call->output_gradient[0].data, call->accumulate[X], call->input_gradient[X].data);
}

static const comba_case cases[] = {{.name = "rate 0", .input = {{COMBA_SHAPE(3, 5)}}},
                                   {.name = "rate 0.3",
                                    .attributes = &(const comba_dropout_attributes){.rate = 0.3, .stream = 5},
                                    .input = {{COMBA_SHAPE(17, 3, 7)}}},
                                   {.name = "rate 0.5, samples of 24",
                                    .attributes = &(const comba_dropout_attributes){.rate = 0.5, .stream = 5},
                                    .input = {{COMBA_SHAPE(9, 3, 8)}}},
                                   {.name = "rate 0.9, rank 1",
                                    .attributes = &(const comba_dropout_attributes){.rate = 0.9, .stream = 6},
                                    .input = {{COMBA_SHAPE(33)}}},
                                   {.name = "64 x 196 x 384, rate 0.1",
                                    .attributes = &(const comba_dropout_attributes){.rate = 0.1, .stream = 7},
                                    .benchmark = true,
                                    .input = {{COMBA_SHAPE(64, 196, 384)}}},
                                   {0}};

const comba_op COMBA_VARIANT(comba_op_drop_path) = {
    .name = "drop_path",
    .formula = "y[b] = x[b] / (1 - rate) where a uniform draw is >= rate, else 0",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_dropout_attributes),
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
