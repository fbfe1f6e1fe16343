/* y_i = x_i / (1 - rate) where draw_i >= rate, else 0; draw_i uniform in (0, 1), element i of the stream
 * dx_i = dy_i / (1 - rate) where draw_i >= rate, else 0: the same draws, made again */
#include "core/random.h"
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"

enum { X };
enum { DRAWS = 256, CHUNK = 4 * DRAWS }; /* elements that one thread masks at a time; a Philox draw gives four */

static comba_status infer(comba_signature *s) {
  const comba_dropout_attributes *a = s->attributes;
  if (!comba_extent_fits(&s->input[X], 0)) return comba_fail_shape(s, X, "(...)");
  if (!(a->rate >= 0 && a->rate < 1))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: rate is %g, expected at least 0 and less than 1", s->op, a->rate);
  s->outputs = 1;
  s->output[0] = s->input[X];
  return COMBA_OK;
}

/* y = or += x / (1 - rate) where the draw keeps it, for n values */
static void mask(const comba_call *call, const real *x, int64_t n, bool accumulate, real *y) {
  const comba_dropout_attributes *a = call->attributes;
  const uint64_t seed = call->run->seed, stream = a->stream + (call->run->step << 32);
  const uint32_t least = comba_random_threshold(a->rate);
  const real scale = (real)(1 / (1 - a->rate));
#pragma omp parallel for
  for (int64_t start = 0; start < n; start += CHUNK) {
    const int64_t count = start + CHUNK < n ? CHUNK : n - start;
    uint32_t words[CHUNK];
#pragma omp simd
    for (int64_t i = 0; i < DRAWS; i++) {
      const comba_random4 draw = comba_random_bits(seed, stream, (uint64_t)(start / 4 + i));
      words[4 * i] = draw.value[0];
      words[4 * i + 1] = draw.value[1];
      words[4 * i + 2] = draw.value[2];
      words[4 * i + 3] = draw.value[3];
    }
    const real *in = x + start;
    real *out = y + start;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      const real kept = words[i] >= least ? scale * in[i] : 0;
      out[i] = kept + (accumulate ? out[i] : 0);
    }
  }
}

static void forward(const comba_call *call) {
  mask(call, call->input[X].data, comba_shape_elements(&call->input[X].shape), false, call->output[0].data);
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[X].data) return;
  mask(call, call->output_gradient[0].data, comba_shape_elements(&call->input[X].shape), call->accumulate[X],
       call->input_gradient[X].data);
}

static const comba_case cases[] = {{.name = "rate 0", .input = {{COMBA_SHAPE(3, 5)}}},
                                   {.name = "rate 0.3",
                                    .attributes = &(const comba_dropout_attributes){.rate = 0.3, .stream = 5},
                                    .input = {{COMBA_SHAPE(2, 3, 7)}}},
                                   {.name = "rate 0.9, more than one chunk",
                                    .attributes = &(const comba_dropout_attributes){.rate = 0.9, .stream = 6},
                                    .input = {{COMBA_SHAPE(5, 411)}}},
                                   {.name = "8 x 1024 x 1024, rate 0.1",
                                    .attributes = &(const comba_dropout_attributes){.rate = 0.1, .stream = 7},
                                    .benchmark = true,
                                    .input = {{COMBA_SHAPE(8, 1024, 1024)}}},
                                   {0}};

const comba_op COMBA_VARIANT(comba_op_dropout) = {
    .name = "dropout",
    .formula = "y = x / (1 - rate) where a uniform draw is >= rate, else 0",
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
