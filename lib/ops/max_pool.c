/* y[i,j] = max over the window of x whose first pixel is (stride i - padding, stride j - padding), inside the image
 * dx at the place of each window's largest value += dy[i,j]; of equal values the first in row-major order */
#include "ops/gradient.h"
#include "ops/window.h"

enum { X };
enum { PLACE }; /* saved: the place of the largest value in its plane (H,W), as int32 in the memory of a real */

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const comba_window_attributes *a = s->attributes;
  if (!comba_extent_fits(x, 4) || x->size[2] > INT32_MAX / x->size[3])
    return comba_fail_shape(s, X, "(B, C, H, W) with at most 2^31 - 1 pixels an image");
  const comba_status status = comba_window_check(s);
  if (status != COMBA_OK) return status;
  if (a->kernel < 1 || a->kernel > INT32_MAX)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: kernel is %lld, expected at least 1", s->op, (long long)a->kernel);
  if (a->padding >= a->kernel) /* such a window would hold nothing */
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: padding is %lld, expected less than the kernel, %lld", s->op,
                      (long long)a->padding, (long long)a->kernel);
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(x->size[0], x->size[1], comba_window_count(a, x->size[2], a->kernel),
                             comba_window_count(a, x->size[3], a->kernel));
  if (s->output[0].size[2] < 1 || s->output[0].size[3] < 1)
    return comba_fail_shape(s, X, "(B, C, H, W) with padded H and W no smaller than the kernel");
  if (!comba_extent_fits(&s->output[0], 4)) return comba_fail_extent(s, &s->output[0]);
  s->saved = 1;
  s->saved_shape[PLACE] = s->output[0];
  const comba_shape line = COMBA_SHAPE(4, x->size[3] + 2 * a->padding);
  if (!comba_extent_fits(&line, 2)) return comba_fail_extent(s, &line);
  s->forward_workspace = comba_blocks(x->size[0] * x->size[1], 1) * comba_shape_elements(&line);
  return COMBA_OK;
}

/* The best value found so far at each of some positions, and its place. */
typedef struct candidates {
  real *value;
  int32_t *place;
} candidates;

static candidates candidates_at(real *memory, int64_t length) {
  return (candidates){memory, (int32_t *)(memory + length)};
}

/* A NaN counts as the largest, so that it shows. */
static inline bool wins(real value, int32_t place, real bound, int32_t bound_place) {
  return (value > bound) | ((value == bound) & (place < bound_place)) | (value != value);
}

static void clear(candidates best, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    best.value[i] = -(real)INFINITY;
    best.place[i] = INT32_MAX;
  }
}

/* best[i] = the better of itself and pixel `start` + i of the plane */
static void offer_pixels(const real *plane, int64_t start, int64_t n, candidates best) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real value = plane[start + i];
    const int32_t place = (int32_t)(start + i);
    const bool better = wins(value, place, best.value[i], best.place[i]);
    best.value[i] = better ? value : best.value[i];
    best.place[i] = better ? place : best.place[i];
  }
}

/* best[i] = the better of itself and from[i + shift] */
static void offer_candidates(candidates from, int64_t shift, int64_t n, candidates best) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real value = from.value[i + shift];
    const int32_t place = from.place[i + shift];
    const bool better = wins(value, place, best.value[i], best.place[i]);
    best.value[i] = better ? value : best.value[i];
    best.place[i] = better ? place : best.place[i];
  }
}

/* For a row of windows: the best of each column of their lines, with the padding as columns that hold nothing; from
 * these the best of a window at every column, so that loops run over neighbours; then one window in `stride` stays. */
static void forward(const comba_call *call) {
  const comba_window_attributes *a = call->attributes;
  const comba_shape *shape = &call->input[X].shape, *out = &call->output[0].shape;
  const int64_t planes = shape->size[0] * shape->size[1], height = shape->size[2], width = shape->size[3];
  const int64_t rows = out->size[2], windows = out->size[3], stride = comba_window_stride(a);
  const int64_t blocks = comba_blocks(planes, 1), length = width + 2 * a->padding;
  real *y = call->output[0].data;
  int32_t *saved = call->saved[PLACE].data;
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; block++) {
    real *memory = (real *)call->workspace + block * 4 * length;
    const candidates column = candidates_at(memory, length), window = candidates_at(memory + 2 * length, length);
    const candidates image = {column.value + a->padding, column.place + a->padding};
    for (int64_t row = comba_block_start(planes * rows, blocks, block);
         row < comba_block_start(planes * rows, blocks, block + 1); row++) {
      const real *plane = (const real *)call->input[X].data + row / rows * height * width;
      const int64_t top = row % rows * stride - a->padding, bottom = smaller(top + a->kernel, height);
      clear(column, length);
      for (int64_t line = larger(top, 0); line < bottom; line++) offer_pixels(plane, line * width, width, image);
      clear(window, length);
      for (int64_t tap = 0; tap < a->kernel; tap++) offer_candidates(column, tap, length - a->kernel + 1, window);
      for (int64_t j = 0; j < windows; j++) y[row * windows + j] = window.value[j * stride];
      for (int64_t j = 0; j < windows && saved; j++) saved[row * windows + j] = window.place[j * stride];
    }
  }
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 1) || !call->input_gradient[X].data) return;
  const comba_shape *shape = &call->input[X].shape, *out = &call->output_gradient[0].shape;
  const int64_t planes = shape->size[0] * shape->size[1];
  const int64_t pixels = shape->size[2] * shape->size[3], windows = out->size[2] * out->size[3];
  const real *dy = call->output_gradient[0].data;
  const int32_t *place = call->saved[PLACE].data;
#pragma omp parallel for
  for (int64_t plane = 0; plane < planes; plane++) {
    real *dx = (real *)call->input_gradient[X].data + plane * pixels;
    if (!call->accumulate[X]) memset(dx, 0, (size_t)pixels * sizeof(real));
    for (int64_t i = plane * windows; i < (plane + 1) * windows; i++) dx[place[i]] += dy[i];
  }
}

static const comba_case cases[] = {
    {.name = "3 x 3, stride 2, padding 1",
     .attributes = &(const comba_window_attributes){.kernel = 3, .stride = 2, .padding = 1},
     .input = {{COMBA_SHAPE(2, 3, 9, 6)}}},
    {.name = "2 x 2, stride 1",
     .attributes = &(const comba_window_attributes){.kernel = 2},
     .input = {{COMBA_SHAPE(1, 2, 5, 3)}}},
    {.name = "window beyond the image",
     .attributes = &(const comba_window_attributes){.kernel = 5, .stride = 3, .padding = 4},
     .input = {{COMBA_SHAPE(2, 2, 2, 3)}}},
    {.name = "stride beyond the window",
     .attributes = &(const comba_window_attributes){.kernel = 2, .stride = 3},
     .input = {{COMBA_SHAPE(1, 3, 8, 11)}}},
    {.name = "32 images of 64 x 64 x 64, 3 x 3, stride 2",
     .attributes = &(const comba_window_attributes){.kernel = 3, .stride = 2, .padding = 1},
     .benchmark = true,
     .input = {{COMBA_SHAPE(32, 64, 64, 64)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_max_pool) = {
    .name = "max_pool",
    .formula = "y[i, j] = max_{k,l < kernel} x[stride i + k - padding, stride j + l - padding]",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_window_attributes),
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
