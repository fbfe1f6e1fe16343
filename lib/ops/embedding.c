/* y[t] = weight[ids[t]];  dweight[ids[t]] += dy[t], except for the padding row. Nothing is rounded here, so that no rest is left. */
#include "core/parallel.h"
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

enum { IDS, WEIGHT };
enum { Y, REST };
enum { COLUMNS = 64 }; /* of the weight's gradient that one thread adds up */

static comba_status infer(comba_signature *s) {
  const comba_embedding_attributes *attributes = s->attributes;
  const comba_shape *ids = &s->input[IDS], *weight = &s->input[WEIGHT];
  if (!comba_extent_fits(ids, 2)) return comba_fail_shape(s, IDS, "(B, T)");
  if (!comba_extent_fits(weight, 2)) return comba_fail_shape(s, WEIGHT, "(vocabulary, d)");
  if (attributes->padding_plus_one < 0 || attributes->padding_plus_one > weight->size[0])
    return comba_fail(COMBA_ERROR_ARGUMENT, "embedding: padding row is %lld, expected one of %lld or none",
                      (long long)attributes->padding_plus_one - 1, (long long)weight->size[0]);
  s->outputs = attributes->rest ? 2 : 1;
  s->output[Y] = s->output[REST] = COMBA_SHAPE(ids->size[0], ids->size[1], weight->size[1]);
  return comba_extent_fits(&s->output[Y], 3) ? COMBA_OK : comba_fail_extent(s, &s->output[Y]);
}

static void forward(const comba_call *call) {
  const int64_t tokens = comba_shape_elements(&call->input[IDS].shape), d = call->input[WEIGHT].shape.size[1];
  const int32_t *ids = call->input[IDS].data;
  const real *weight = call->input[WEIGHT].data;
  real *y = call->output[Y].data, *rest = call->output[REST].data;
  if (rest) memset(rest, 0, (size_t)(tokens * d) * sizeof(real));
#pragma omp parallel for if (tokens * d > COMBA_SERIAL)
  for (int64_t t = 0; t < tokens; t++) memcpy(y + t * d, weight + ids[t] * d, (size_t)d * sizeof(real));
}

/* Threads share out columns and each walks all tokens, so every element's sum runs in the order of the tokens. */
static void backward(const comba_call *call) {
  const comba_embedding_attributes *attributes = call->attributes;
  const int64_t tokens = comba_shape_elements(&call->input[IDS].shape), d = call->input[WEIGHT].shape.size[1];
  const int32_t *ids = call->input[IDS].data;
  const real *dy = call->output_gradient[Y].data;
  real *dweight = call->input_gradient[WEIGHT].data;
  if (comba_gradient_absent(call, 2) || !dweight) return;
  if (!call->accumulate[WEIGHT])
    memset(dweight, 0, (size_t)comba_shape_elements(&call->input[WEIGHT].shape) * sizeof(real));
#pragma omp parallel for if (tokens * d > COMBA_SERIAL)
  for (int64_t column = 0; column < d; column += COLUMNS) {
    const int64_t width = d - column < COLUMNS ? d - column : COLUMNS;
    for (int64_t t = 0; t < tokens; t++)
      if (ids[t] + 1 != attributes->padding_plus_one)
        comba_store(dweight + ids[t] * d + column, dy + t * d + column, width, true);
  }
}

#define PADDING(row) (&(const comba_embedding_attributes){.padding_plus_one = (row) + 1})
#define NO_PADDING (&(const comba_embedding_attributes){0})
#define REST_TOO (&(const comba_embedding_attributes){.rest = true})
static const comba_case cases[] = {
    {.name = "repeated ids",
     .attributes = NO_PADDING,
     .input = {{COMBA_SHAPE(2, 130), COMBA_FILL_INDEX, .low = 0, .high = 5}, {COMBA_SHAPE(5, 67)}}},
    {.name = "padding row",
     .attributes = PADDING(2),
     .input = {{COMBA_SHAPE(1, 6), COMBA_FILL_VALUES, .values = (const int32_t[]){2, 0, 2, 3, 3, 0}},
               {COMBA_SHAPE(4, 130), .no_gradient = true}}}, /* the padding row moves y, but has no gradient */
    {.name = "one token, one channel",
     .attributes = PADDING(0),
     .input = {{COMBA_SHAPE(1, 1), COMBA_FILL_VALUES, .values = (const int32_t[]){1}}, {COMBA_SHAPE(2, 1)}}},
    {.name = "rest, small weights",
     .attributes = REST_TOO,
     .input = {{COMBA_SHAPE(2, 30), COMBA_FILL_INDEX, .low = 0, .high = 5}, {COMBA_SHAPE(5, 72), .scale = 0.1}}},
    {.name = "rest, small weights, odd width",
     .attributes = REST_TOO,
     .input = {{COMBA_SHAPE(2, 30), COMBA_FILL_INDEX, .low = 0, .high = 5}, {COMBA_SHAPE(5, 67), .scale = 0.1}}},
    {.name = "2048 tokens, 32000 x 1024",
     .attributes = NO_PADDING,
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024), COMBA_FILL_INDEX, .low = 0, .high = 32000}, {COMBA_SHAPE(32000, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_embedding) = {
    .name = "embedding",
    .formula = "y = weight[ids]",
    .inputs = 2,
    .outputs = 2,
    .input_class = {COMBA_INDEX, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION, COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_embedding_attributes),
    .backward_inputs = 1u << IDS,
    .constant_outputs = 1u << REST,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
