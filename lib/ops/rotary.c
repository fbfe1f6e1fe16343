/* (y_a, y_b) = (x_a c - x_b s, x_b c + x_a s),  c, s = cos, sin(n base^(-2j/D)) at position n, for the pairs j < D/2:
 * (a, b) = (j, j + D/2), or interleaved (2j, 2j + 1)
 * dx: dy rotated by the opposite angle */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "ops/sequences.h"

enum { X, POSITION, CU_SEQLENS };
enum { STEPS = 64 }; /* tokens between two exact angles */

static comba_status infer(comba_signature *s) {
  const comba_rotary_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[X], *position = &s->input[POSITION];
  int64_t sequences;
  if (!comba_extent_fits(x, 4) || x->size[3] % 2) return comba_fail_shape(s, X, "(B, T, H, D) with D even");
  if (position->rank && (position->rank != 1 || position->size[0] != 1)) return comba_fail_shape(s, POSITION, "(1)");
  if (!(attributes->base >= 0 && attributes->base < HUGE_VAL))
    return comba_fail(COMBA_ERROR_ARGUMENT, "rotary: base is %g, expected a positive number, or 0 for 10000",
                      attributes->base);
  if (attributes->period < 0)
    return comba_fail(COMBA_ERROR_ARGUMENT, "rotary: period is %lld, expected a number of tokens, or 0 for none",
                      (long long)attributes->period);
  s->outputs = 1;
  s->output[0] = *x;
  s->forward_workspace = s->backward_workspace = x->size[1] * x->size[3];
  return comba_infer_sequences(s, CU_SEQLENS, x->size[0], &sequences);
}

/* table (tokens, D): the D/2 cosines, then the D/2 sines of positions first, first + 1, ...; at most STEPS tokens. The first
 * is exact and each next one turned by one angle, all in double: the error stays below 1e-13. */
static void fill(real *table, int64_t tokens, int64_t d, double base, int64_t first) {
  const int64_t half = d / 2;
  for (int64_t j = 0; j < half; j++) {
    const double angle = pow(base, -2 * (double)j / (double)d);
    const double step_cosine = cos(angle), step_sine = sin(angle);
    double cosine = cos((double)first * angle), sine = sin((double)first * angle);
    for (int64_t t = 0; t < tokens; t++) {
      table[t * d + j] = (real)cosine;
      table[t * d + half + j] = (real)sine;
      const double next = cosine * step_cosine - sine * step_sine;
      sine = sine * step_cosine + cosine * step_sine;
      cosine = next;
    }
  }
}

/* table (T, D) of all tokens of one batch entry */
static void fill_all(const comba_call *call, real *table) {
  const comba_rotary_attributes *attributes = call->attributes;
  const comba_view *x = &call->input[X];
  const int64_t length = x->shape.size[1], d = x->shape.size[3], blocks = (length + STEPS - 1) / STEPS;
  const comba_sequences sequences = comba_sequences_of(x, &call->input[CU_SEQLENS]);
  const int32_t *position = call->input[POSITION].data;
  const double base = attributes->base == 0 ? 10000 : attributes->base;
#pragma omp parallel for if (blocks > 1)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = (block + 1) * STEPS < length ? (block + 1) * STEPS : length;
    int64_t t = block * STEPS;
    for (int64_t n = comba_sequence_at(&sequences, t); t < end;) {
      const int64_t start = comba_sequence_start(&sequences, n), stop = comba_sequence_start(&sequences, n + 1);
      int64_t tokens = (stop < end ? stop : end) - t, first = t - start + (position ? *position : 0);
      if (tokens <= 0) {
        n++;
        continue;
      }
      if (attributes->period) {
        first %= attributes->period;
        if (tokens > attributes->period - first) tokens = attributes->period - first;
      }
      fill(table + t * d, tokens, d, base, first);
      t += tokens;
    }
  }
}

/* y = or += x rotated by the angles of one row of the table, times `direction` (1 or -1); the two of a pair are `apart`,
 * neighbouring pairs `step`. */
static inline void rotate_pairs(const real *restrict x, const real *restrict table, real direction, int64_t half,
                                int64_t step, int64_t apart, bool accumulate, real *restrict y) {
  const real *cosine = table, *sine = table + half;
  if (accumulate)
#pragma omp simd
    for (int64_t j = 0; j < half; j++) {
      const int64_t a = j * step, b = a + apart;
      y[a] += x[a] * cosine[j] - direction * x[b] * sine[j];
      y[b] += x[b] * cosine[j] + direction * x[a] * sine[j];
    }
  else
#pragma omp simd
    for (int64_t j = 0; j < half; j++) {
      const int64_t a = j * step, b = a + apart;
      y[a] = x[a] * cosine[j] - direction * x[b] * sine[j];
      y[b] = x[b] * cosine[j] + direction * x[a] * sine[j];
    }
}

/* x, y (H,D) */
static void rotate(const real *x, const real *table, real direction, int64_t heads, int64_t d, bool interleaved,
                   bool accumulate, real *y) {
  for (int64_t h = 0; h < heads; h++, x += d, y += d) {
    if (interleaved)
      rotate_pairs(x, table, direction, d / 2, 2, 1, accumulate, y);
    else
      rotate_pairs(x, table, direction, d / 2, 1, d / 2, accumulate, y);
  }
}

static void rotate_all(const comba_call *call, const real *x, real direction, bool accumulate, real *y) {
  const comba_rotary_attributes *attributes = call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t length = shape->size[1], heads = shape->size[2], d = shape->size[3], rows = shape->size[0] * length;
  real *table = call->workspace;
  fill_all(call, table);
#pragma omp parallel for if (rows * heads * d > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++)
    rotate(x + row * heads * d, table + row % length * d, direction, heads, d, attributes->interleaved, accumulate,
           y + row * heads * d);
}

static void forward(const comba_call *call) {
  rotate_all(call, call->input[X].data, 1, false, call->output[0].data);
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[X].data) return;
  rotate_all(call, call->output_gradient[0].data, -1, call->accumulate[X], call->input_gradient[X].data);
}

#define BASE(value) (&(const comba_rotary_attributes){.base = value})
#define PERIOD(tokens) (&(const comba_rotary_attributes){.period = tokens, .interleaved = true})
#define VALUES(...)                                                                                                    \
  COMBA_FILL_VALUES, .values = (const int32_t[]) {                                                                     \
    __VA_ARGS__                                                                                                        \
  }
static const comba_case cases[] = {
    {.name = "two entries, odd sizes", .attributes = BASE(10000), .input = {{COMBA_SHAPE(2, 7, 3, 10)}}},
    {.name = "more than one block", .attributes = BASE(10000), .input = {{COMBA_SHAPE(1, 150, 2, 64)}}},
    {.name = "far position",
     .attributes = BASE(500000),
     .input = {{COMBA_SHAPE(2, 70, 1, 64)}, {COMBA_SHAPE(1), VALUES(1048576)}}},
    {.name = "packed, empty sequences, across blocks",
     .attributes = BASE(0),
     .input = {{COMBA_SHAPE(1, 131, 1, 4)},
               {COMBA_SHAPE(1), VALUES(5)},
               {COMBA_SHAPE(8), VALUES(0, 0, 3, 3, 4, 64, 131, 131)}}},
    {.name = "interleaved, period",
     .attributes = PERIOD(16),
     .input = {{COMBA_SHAPE(2, 70, 2, 10)}, {COMBA_SHAPE(1), VALUES(37)}}},
    {.name = "interleaved, period, packed",
     .attributes = PERIOD(3),
     .input = {{COMBA_SHAPE(1, 131, 1, 4)}, {0}, {COMBA_SHAPE(5), VALUES(0, 1, 1, 68, 131)}}},
    {.name = "one token", .attributes = BASE(10000), .input = {{COMBA_SHAPE(1, 1, 1, 2)}, {COMBA_SHAPE(1), VALUES(3)}}},
    {.name = "2048 x 16 x 64", .attributes = BASE(10000), .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 16, 64)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_rotary) = {
    .name = "rotary",
    .formula = "pairs (x_j, x_{j+D/2}), or (x_2j, x_{2j+1}), rotated by position base^(-2j/D)",
    .inputs = 3,
    .outputs = 1,
    .optional_inputs = 1u << POSITION | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_INDEX, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_rotary_attributes),
    .backward_inputs = 1u << POSITION | 1u << CU_SEQLENS,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
