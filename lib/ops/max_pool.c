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

/* Values and their places in the plane. */
typedef struct candidates {
  real *value;
  int32_t *place;
} candidates;

/* Of one plane with (H',W') windows. Column i + stride j of a line, i < stride, is number j of its part i, so that a tap of
 * neighbouring windows reads neighbours; parts are whole vectors long, so that loops over them have no remainders. */
typedef struct pool_scratch {
  int64_t length; /* of a part */
  candidates
      lines; /* (H', stride length): the largest over the lines of each row of windows, between columns of -infinity */
  candidates parts; /* (H', stride, length): the same */
  candidates best;  /* (length) */
} pool_scratch;

enum { UNIT = 16 }; /* a vector of floats */

static int64_t whole_vectors(int64_t count) {
  return (count + UNIT - 1) / UNIT * UNIT;
}

/* Lays the scratch out from `base` on and returns its size in reals. A place takes the memory of a real. */
static int64_t lay_out(pool_scratch *s, real *base, const comba_window_attributes *a, int64_t width, int64_t rows,
                       int64_t columns) {
  const int64_t stride = comba_window_stride(a), padded = width + 2 * a->padding;
  s->length = whole_vectors(larger(whole_vectors(columns) + a->kernel / stride, (padded + stride - 1) / stride));
  const int64_t size[] = {rows * stride * s->length, rows * stride * s->length, s->length};
  candidates *const part[] = {&s->lines, &s->parts, &s->best};
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
  const int64_t columns = s->output[0].size[3];
  const comba_shape scratch = COMBA_SHAPE(8, s->output[0].size[2] + 1, comba_window_stride(a),
                                          columns + x->size[3] + 2 * a->padding + a->kernel + 2 * UNIT);
  if (!comba_extent_fits(&scratch, 4)) return comba_fail_extent(s, &scratch);
  s->forward_workspace = comba_blocks(x->size[0] * x->size[1], 1) *
                         lay_out(&(pool_scratch){0}, NULL, a, x->size[3], s->output[0].size[2], columns);
  return COMBA_OK;
}

static candidates at(candidates c, int64_t offset) {
  return (candidates){c.value + offset, c.place + offset};
}

/* line = the largest over the lines first, ..., first + kernel - 1 of the plane, `unit` columns at a time, the last of which may be
 * among those before. Lines beyond the plane are its first or last once more, which changes nothing. They come in their order, so the
 * first of equal values stays; a NaN counts as the largest, so that it shows. Sizes may be constants where these functions are
 * inlined. */
static inline __attribute__((always_inline)) void pool_lines(int unit, int kernel, int64_t first, const real *plane,
                                                             int64_t height, int64_t width, candidates line) {
  for (int64_t column = 0; column < width; column += unit) {
    const int32_t start = (int32_t)smaller(column, width - unit);
    real *restrict best = line.value + start;
    int32_t *restrict best_place = line.place + start;
    const int32_t top = (int32_t)(larger(first, 0) * width) + start;
#pragma omp simd
    for (int x = 0; x < unit; x++) {
      real value = plane[top + x];
      int32_t place = top + x;
      for (int k = 1; k < kernel; k++) {
        const int32_t next = (int32_t)(smaller(larger(first + k, 0), height - 1) * width) + start;
        const real other = plane[next + x];
        const bool better = (other > value) | (other != other);
        value = better ? other : value;
        place = better ? next + x : place;
      }
      best[x] = value;
      best_place[x] = place;
    }
  }
}

/* parts (stride, length) of a line */
static inline __attribute__((always_inline)) void part_line(int64_t stride, candidates line, int64_t length,
                                                            candidates parts) {
  const real *restrict value = line.value;
  const int32_t *restrict place = line.place;
#pragma omp simd
  for (int64_t j = 0; j < length; j++)
    for (int64_t i = 0; i < stride; i++) {
      parts.value[i * length + j] = value[j * stride + i];
      parts.place[i * length + j] = place[j * stride + i];
    }
}

/* best = the largest over the columns of each window of a line; of equal values that of the smallest place */
static inline __attribute__((always_inline)) void pool_columns(int kernel, int64_t stride, candidates parts,
                                                               int64_t length, int64_t windows, candidates best) {
  memcpy(best.value, parts.value, (size_t)windows * sizeof(real));
  memcpy(best.place, parts.place, (size_t)windows * sizeof(int32_t));
  for (int k = 1; k < kernel; k++) {
    const candidates tap = at(parts, k % stride * length + k / stride);
    const real *restrict value = tap.value;
    const int32_t *restrict place = tap.place;
    real *restrict best_value = best.value;
    int32_t *restrict best_place = best.place;
#pragma omp simd
    for (int64_t j = 0; j < windows; j++) {
      const bool equal = (value[j] == best_value[j]) & (place[j] < best_place[j]);
      const bool better = (value[j] > best_value[j]) | equal | (value[j] != value[j]);
      best_value[j] = better ? value[j] : best_value[j];
      best_place[j] = better ? place[j] : best_place[j];
    }
  }
}

/* First across the lines, then along what is left; row by row of the windows, each step for all of them: what one has just stored
 * the next could not yet read in vectors that begin elsewhere. */
static inline __attribute__((always_inline)) void pool_plane(int kernel, int64_t stride, const comba_call *call,
                                                             int64_t plane, const pool_scratch *s) {
  const int64_t padding = ((const comba_window_attributes *)call->attributes)->padding;
  const comba_shape *in = &call->input[X].shape, *out = &call->output[0].shape;
  const int64_t height = in->size[2], width = in->size[3], rows = out->size[2], columns = out->size[3];
  const int64_t row_size = stride * s->length;
  const real *x = (const real *)call->input[X].data + plane * height * width;
  for (int64_t row = 0; row < rows; row++) {
    const candidates line = at(s->lines, row * row_size + padding);
    const int64_t first = row * stride - padding;
    if (width >= UNIT)
      pool_lines(UNIT, kernel, first, x, height, width, line);
    else if (width >= UNIT / 2)
      pool_lines(UNIT / 2, kernel, first, x, height, width, line);
    else
      pool_lines((int)width, kernel, first, x, height, width, line);
  }
  for (int64_t row = 0; row < rows; row++)
    part_line(stride, at(s->lines, row * row_size), s->length, at(s->parts, row * row_size));
  for (int64_t row = 0; row < rows; row++) {
    const int64_t to = (plane * rows + row) * columns;
    pool_columns(kernel, stride, at(s->parts, row * row_size), s->length, whole_vectors(columns), s->best);
    memcpy((real *)call->output[0].data + to, s->best.value, (size_t)columns * sizeof(real));
    if (call->saved[PLACE].data)
      memcpy((int32_t *)call->saved[PLACE].data + to, s->best.place, (size_t)columns * sizeof(int32_t));
  }
}

static void forward(const comba_call *call) {
  const comba_window_attributes *a = call->attributes;
  const comba_shape *in = &call->input[X].shape, *out = &call->output[0].shape;
  const int64_t planes = in->size[0] * in->size[1], blocks = comba_blocks(planes, 1);
  const int64_t size = lay_out(&(pool_scratch){0}, NULL, a, in->size[3], out->size[2], out->size[3]);
  const int64_t stride = comba_window_stride(a);
  const int kernel = (int)a->kernel;
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; block++) {
    real *memory = (real *)call->workspace + comba_scratch_of(block, blocks) * size;
    pool_scratch s = {0};
    lay_out(&s, memory, a, in->size[3], out->size[2], out->size[3]);
    /* beside the image: never better than a pixel of -infinity */
    for (int64_t i = 0; i < out->size[2] * stride * s.length; i++) {
      s.lines.value[i] = -(real)INFINITY;
      s.lines.place[i] = INT32_MAX;
    }
    const int64_t end = comba_block_start(planes, blocks, block + 1);
    for (int64_t plane = comba_block_start(planes, blocks, block); plane < end; plane++)
      if (kernel == 3 && stride == 2)
        pool_plane(3, 2, call, plane, &s);
      else
        pool_plane(kernel, stride, call, plane, &s);
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
    {.name = "lines of more than a vector",
     .attributes = &(const comba_window_attributes){.kernel = 3, .stride = 2, .padding = 1},
     .input = {{COMBA_SHAPE(2, 2, 5, 37)}}},
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
