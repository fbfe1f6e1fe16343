/* y = scale f(x);  dx = scale f'(x) dy
 *
 *   sigmoid  s = 1 / (1 + e^-x)    s (1 - s)
 *   silu     x s                   s + x s (1 - s)
 *   gelu     x Phi(x)              Phi(x) + x phi(x), Phi and phi the normal distribution and its density
 *   gelu tanh  gelu in its form with tanh (ops/gelu.h)
 *   tanh     tanh(x)               1 - tanh(x)^2
 *   relu     max(x, 0)             1 where x > 0
 *   elu + 1  x + 1, e^x if x <= 0  1, e^x if x <= 0
 *   relu^2   max(x, 0)^2           2 max(x, 0) */
#include "ops/extent.h"
#include "ops/gelu.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"

static comba_status infer(comba_signature *s) {
  const comba_activation_attributes *attributes = s->attributes;
  if (!comba_extent_fits(&s->input[0], 0)) return comba_fail_shape(s, 0, "any shape");
  if ((unsigned)attributes->function > COMBA_GELU_TANH)
    return comba_fail(COMBA_ERROR_ARGUMENT, "activation: function is %d, expected 0 to %d", (int)attributes->function,
                      COMBA_GELU_TANH);
  s->outputs = 1;
  s->output[0] = s->input[0];
  return COMBA_OK;
}

/* Phi(x), and phi(x) into `density`. */
static inline real normal(real x, real *density) {
  const real bell = comba_exp(x * x * (real)-0.5);
  *density = (real)0.3989422804014327 * bell;
#ifdef COMBA_REAL_DOUBLE
  return 0.5 * erfc(-x * 0.70710678118654752);
#else
  /* Phi(-|x|) e^(x^2/2) as a polynomial in 1 / (1 + 0.3 |x|), minimax on [0, 13.5]: relative error 6e-8, so that the far
   * tail keeps its digits too. Unlike the C library's erf it has no branches and vectorises. */
  const float t = 1 / (1 + 0.3f * fabsf(x));
  float p = 3.833424737e-2f;
  p = p * t - 1.689518654e-1f;
  p = p * t + 2.282171202e-1f;
  p = p * t - 7.59993867e-2f;
  p = p * t + 1.421849198e-1f;
  p = p * t + 9.483303393e-2f;
  p = p * t + 1.218820412e-1f;
  p = p * t + 1.194930654e-1f;
  p = p * t + 6.852828714e-6f;
  const float tail = p * bell;
  return x < 0 ? tail : 1 - tail;
#endif
}

static void map(comba_function function, real scale, const real *restrict x, real *restrict y, int64_t n) {
  real density;
  switch (function) {
  case COMBA_SIGMOID:
    for (int64_t i = 0; i < n; i++) y[i] = scale * comba_sigmoid(x[i]);
    break;
  case COMBA_SILU:
    for (int64_t i = 0; i < n; i++) y[i] = scale * x[i] * comba_sigmoid(x[i]);
    break;
  case COMBA_GELU:
    for (int64_t i = 0; i < n; i++) y[i] = scale * x[i] * normal(x[i], &density);
    break;
  case COMBA_TANH:
    for (int64_t i = 0; i < n; i++) y[i] = scale * comba_real_tanh(x[i]);
    break;
  case COMBA_RELU:
    for (int64_t i = 0; i < n; i++) y[i] = x[i] > 0 ? scale * x[i] : 0;
    break;
  case COMBA_ELU_PLUS_ONE:
    for (int64_t i = 0; i < n; i++) y[i] = scale * (x[i] > 0 ? x[i] + 1 : comba_exp(x[i]));
    break;
  case COMBA_SQUARED_RELU:
    for (int64_t i = 0; i < n; i++) y[i] = x[i] > 0 ? scale * x[i] * x[i] : 0;
    break;
  case COMBA_GELU_TANH:
    for (int64_t i = 0; i < n; i++) y[i] = scale * comba_gelu_tanh(x[i], &density);
    break;
  }
}

/* slope (n) = scale f'(x) dy */
static void map_gradient(comba_function function, real scale, const real *restrict x, const real *restrict dy,
                         real *restrict slope, int64_t n) {
  switch (function) {
  case COMBA_SIGMOID:
    for (int64_t i = 0; i < n; i++) {
      const real s = comba_sigmoid(x[i]);
      slope[i] = scale * dy[i] * s * (1 - s);
    }
    break;
  case COMBA_SILU:
    for (int64_t i = 0; i < n; i++) {
      const real s = comba_sigmoid(x[i]);
      slope[i] = scale * dy[i] * (s + x[i] * s * (1 - s));
    }
    break;
  case COMBA_GELU:
    for (int64_t i = 0; i < n; i++) {
      real density;
      const real distribution = normal(x[i], &density);
      slope[i] = scale * dy[i] * (distribution + x[i] * density);
    }
    break;
  case COMBA_TANH:
    for (int64_t i = 0; i < n; i++) {
      const real value = comba_real_tanh(x[i]);
      slope[i] = scale * dy[i] * (1 - value * value);
    }
    break;
  case COMBA_RELU:
    for (int64_t i = 0; i < n; i++) slope[i] = x[i] > 0 ? scale * dy[i] : 0;
    break;
  case COMBA_ELU_PLUS_ONE:
    for (int64_t i = 0; i < n; i++) slope[i] = scale * dy[i] * (x[i] > 0 ? 1 : comba_exp(x[i]));
    break;
  case COMBA_SQUARED_RELU:
    for (int64_t i = 0; i < n; i++) slope[i] = x[i] > 0 ? 2 * scale * x[i] * dy[i] : 0;
    break;
  case COMBA_GELU_TANH:
    for (int64_t i = 0; i < n; i++) {
      real derivative;
      comba_gelu_tanh(x[i], &derivative);
      slope[i] = scale * dy[i] * derivative;
    }
    break;
  }
}

static real scale_of(const comba_activation_attributes *attributes) {
  return attributes->scale == 0 ? 1 : (real)attributes->scale;
}

static void forward(const comba_call *call) {
  const comba_activation_attributes *attributes = call->attributes;
  const int64_t count = comba_shape_elements(&call->input[0].shape), tiles = comba_tiles(count);
  const real *x = call->input[0].data;
  real *y = call->output[0].data;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t start = tile * COMBA_TILE;
    map(attributes->function, scale_of(attributes), x + start, y + start, comba_tile_size(count, tile));
  }
}

static void backward(const comba_call *call) {
  const comba_activation_attributes *attributes = call->attributes;
  const int64_t count = comba_shape_elements(&call->input[0].shape), tiles = comba_tiles(count);
  const real *x = call->input[0].data, *dy = call->output_gradient[0].data;
  real *dx = call->input_gradient[0].data;
  if (comba_gradient_absent(call, 1) || !dx) return;
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t start = tile * COMBA_TILE, n = comba_tile_size(count, tile);
    real slope[COMBA_TILE];
    map_gradient(attributes->function, scale_of(attributes), x + start, dy + start, slope, n);
    comba_store(dx + start, slope, n, call->accumulate[0]);
  }
}

#define FUNCTION(function, scale) (&(const comba_activation_attributes){function, scale})
#define SATURATED COMBA_FILL_UNIFORM, .low = -110, .high = 110
static const comba_case cases[] = {
    {.name = "sigmoid", .attributes = FUNCTION(COMBA_SIGMOID, 0), .input = {{COMBA_SHAPE(3, 5, 83)}}},
    {.name = "sigmoid, saturated", .attributes = FUNCTION(COMBA_SIGMOID, 2), .input = {{COMBA_SHAPE(61), SATURATED}}},
    {.name = "silu, more than one thread",
     .attributes = FUNCTION(COMBA_SILU, -0.5),
     .input = {{COMBA_SHAPE(3, 57, 97)}}},
    {.name = "silu, saturated", .attributes = FUNCTION(COMBA_SILU, 0), .input = {{COMBA_SHAPE(61), SATURATED}}},
    {.name = "gelu", .attributes = FUNCTION(COMBA_GELU, 3), .input = {{COMBA_SHAPE(3, 5, 83)}}},
    {.name = "gelu, tail",
     .attributes = FUNCTION(COMBA_GELU, 0),
     .input = {{COMBA_SHAPE(61), COMBA_FILL_UNIFORM, .low = -9, .high = -2}}},
    {.name = "gelu, saturated", .attributes = FUNCTION(COMBA_GELU, 0), .input = {{COMBA_SHAPE(61), SATURATED}}},
    {.name = "tanh", .attributes = FUNCTION(COMBA_TANH, 1.5), .input = {{COMBA_SHAPE(3, 5, 83)}}},
    {.name = "relu", .attributes = FUNCTION(COMBA_RELU, -2), .input = {{COMBA_SHAPE(3, 5, 83)}}},
    {.name = "elu + 1", .attributes = FUNCTION(COMBA_ELU_PLUS_ONE, 0), .input = {{COMBA_SHAPE(3, 5, 83)}}},
    {.name = "elu + 1, saturated",
     .attributes = FUNCTION(COMBA_ELU_PLUS_ONE, 0.5),
     .input = {{COMBA_SHAPE(61), SATURATED}}},
    {.name = "relu^2", .attributes = FUNCTION(COMBA_SQUARED_RELU, 0.5), .input = {{COMBA_SHAPE(3, 5, 83)}}},
    {.name = "gelu tanh", .attributes = FUNCTION(COMBA_GELU_TANH, 0), .input = {{COMBA_SHAPE(3, 5, 83)}}},
    {.name = "gelu tanh, saturated",
     .attributes = FUNCTION(COMBA_GELU_TANH, 0.5),
     .input = {{COMBA_SHAPE(61), SATURATED}}},
    {.name = "silu, 2048 x 1024",
     .attributes = FUNCTION(COMBA_SILU, 0),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}}},
    {.name = "gelu, 2048 x 1024",
     .attributes = FUNCTION(COMBA_GELU, 0),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_activation) = {
    .name = "activation",
    .formula = "y = scale f(x), f sigmoid, silu, gelu, tanh, relu, elu + 1, relu^2 or gelu with tanh",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_activation_attributes),
    .backward_inputs = 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
