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

/* The largest values found so far at each of some positions, and their places in the plane. */
typedef struct candidates {
  real *value;
  int32_t *place;
} candidates;

/* best[i] = the better of itself and from[i + shift]. Places are offered in row-major order, so the first of equal values
 * stays; a NaN counts as the largest, so that it shows. */
static void offer(candidates from, int64_t shift, int64_t n, candidates best) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real value = from.value[i + shift];
    const int32_t place = from.place[i + shift];
    const bool better = (value > best.value[i]) | (value != value);
    best.value[i] = better ? value : best.value[i];
    best.place[i] = better ? place : best.place[i];
  }
}

static void copy(candidates from, int64_t n, candidates to) {
  memcpy(to.value, from.value, (size_t)n * sizeof(real));
  memcpy(to.place, from.place, (size_t)n * sizeof(int32_t));
}

/* A line of the image lies between columns of -infinity, and lines are whole vectors long: loops have neither borders nor
 * remainders. */
typedef struct pool_scratch {
  int64_t length;     /* of a line */
  candidates line;    /* (length + kernel): the last windows read beyond the line */
  candidates windows; /* (H, length) */
  candidates best;    /* (length) */
} pool_scratch;

enum { UNIT = 16 }; /* a vector of floats */

static int64_t line_length(int64_t width, int64_t padding) {
  return (width + 2 * padding + UNIT - 1) / UNIT * UNIT;
}

/* Lays the scratch out from `base` on and returns its size in reals. A place takes the memory of a real. */
static int64_t lay_out(pool_scratch *s, real *base, const comba_window_attributes *a, int64_t height, int64_t width) {
  s->length = line_length(width, a->padding);
  const int64_t size[] = {s->length + line_length(a->kernel, 0), height * s->length, s->length};
  candidates *const part[] = {&s->line, &s->windows, &s->best};
  int64_t offset = 0;
  for (int i = 0; i < 3; i++) {
    if (base) *part[i] = (candidates){base + offset, (int32_t *)(base + offset + size[i])};
    offset += 2 * size[i];
  }
  return offset;
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
  const comba_shape scratch = COMBA_SHAPE(4, x->size[2] + 2, x->size[3] + 2 * a->padding + a->kernel + UNIT);
  if (!comba_extent_fits(&scratch, 3)) return comba_fail_extent(s, &scratch);
  s->forward_workspace =
      comba_blocks(x->size[0] * x->size[1], 1) * lay_out(&(pool_scratch){0}, NULL, a, x->size[2], x->size[3]);
  return COMBA_OK;
}

static candidates row_of(candidates c, int64_t row, int64_t length) {
  return (candidates){c.value + row * length, c.place + row * length};
}

/* windows (H, length) = the best of the `kernel` neighbours from every column on, line by line of one plane. Padding has the
 * place of the nearest pixel, so that a window that holds nothing above -infinity still names one. */
static void reduce_lines(const comba_window_attributes *a, const real *plane, int64_t height, int64_t width,
                         const pool_scratch *s) {
  const int64_t columns = s->length + a->kernel;
  for (int64_t i = 0; i < columns; i++) s->line.place[i] = (int32_t)smaller(larger(i - a->padding, 0), width - 1);
  for (int64_t y = 0; y < height; y++) {
    const candidates windows = row_of(s->windows, y, s->length);
    for (int64_t i = 0; i < columns && y; i++) s->line.place[i] += (int32_t)width;
    memcpy(s->line.value + a->padding, plane + y * width, (size_t)width * sizeof(real));
    copy(s->line, s->length, windows);
    for (int64_t tap = 1; tap < a->kernel; tap++) offer(s->line, tap, s->length, windows);
  }
}

/* First along the lines, then across them; one window in `stride` stays. */
static void forward(const comba_call *call) {
  const comba_window_attributes *a = call->attributes;
  const comba_shape *shape = &call->input[X].shape, *out = &call->output[0].shape;
  const int64_t planes = shape->size[0] * shape->size[1], height = shape->size[2], width = shape->size[3];
  const int64_t rows = out->size[2], columns = out->size[3], stride = comba_window_stride(a);
  const int64_t blocks = comba_blocks(planes, 1), size = lay_out(&(pool_scratch){0}, NULL, a, height, width);
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; block++) {
    real *memory = (real *)call->workspace + comba_scratch_of(block, blocks) * size;
    pool_scratch s = {0};
    lay_out(&s, memory, a, height, width);
    for (int64_t i = 0; i < size; i++) memory[i] = -(real)INFINITY;
    const int64_t end = comba_block_start(planes, blocks, block + 1);
    for (int64_t plane = comba_block_start(planes, blocks, block); plane < end; plane++) {
      reduce_lines(a, (const real *)call->input[X].data + plane * height * width, height, width, &s);
      for (int64_t row = 0; row < rows; row++) {
        const int64_t top = larger(row * stride - a->padding, 0);
        const int64_t bottom = smaller(row * stride - a->padding + a->kernel, height);
        copy(row_of(s.windows, top, s.length), s.length, s.best);
        for (int64_t y = top + 1; y < bottom; y++) offer(row_of(s.windows, y, s.length), 0, s.length, s.best);
        const int64_t first = (plane * rows + row) * columns;
        real *value = (real *)call->output[0].data + first;
        for (int64_t j = 0; j < columns; j++) value[j] = s.best.value[j * stride];
        int32_t *place = call->saved[PLACE].data ? (int32_t *)call->saved[PLACE].data + first : NULL;
        for (int64_t j = 0; j < columns && place; j++) place[j] = s.best.place[j * stride];
      }
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
    {.name = "lines of 8",
     .attributes = &(const comba_window_attributes){.kernel = 3, .stride = 2, .padding = 1},
     .input = {{COMBA_SHAPE(2, 2, 7, 8)}}},
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
