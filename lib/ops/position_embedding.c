/* y (B,N,d) = x + R table, R (N,M) the identity, or cubic resampling from the table's grid to that of x
 * dx = dy;  dtable += R^T sum over B of dy
 *
 * R is a product of one resampling along each axis (ops/axis_taps.h). */
#include "ops/axis_taps.h"
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/grid_order.h"
#include "ops/ops.h"

enum { X, TABLE };

static bool resamples(const comba_position_embedding_attributes *a) {
  return a->table_height != a->height || a->table_width != a->width;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *table = &s->input[TABLE];
  const comba_position_embedding_attributes *a = s->attributes;
  if (!comba_extent_fits(x, 3)) return comba_fail_shape(s, X, "(B, N, d)");
  const int64_t tokens = x->size[1], d = x->size[2];
  if (!comba_extent_fits(table, 3) || table->size[0] != 1 || table->size[2] != d)
    return comba_fail_shape(s, TABLE, "(1, M, d) with d the last size of x");
  s->outputs = 1;
  s->output[0] = *x;
  if (!a->table_height && !a->table_width && !a->height && !a->width) {
    if (table->size[1] != tokens) return comba_fail_shape(s, TABLE, "(1, N, d), as no grids are given");
    return COMBA_OK;
  }
  if (!comba_grid_holds(a->table_height, a->table_width, table->size[1]))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: the table's grid is %lld x %lld, expected one of %lld points", s->op,
                      (long long)a->table_height, (long long)a->table_width, (long long)table->size[1]);
  if (!comba_grid_holds(a->height, a->width, tokens))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: the grid of x is %lld x %lld, expected one of %lld tokens", s->op,
                      (long long)a->height, (long long)a->width, (long long)tokens);
  if (!resamples(a)) return COMBA_OK;
  const comba_shape wide = COMBA_SHAPE(a->table_height, a->width, d),
                    narrow = COMBA_SHAPE(a->height, a->table_width, d);
  if (!comba_extent_fits(&wide, 3)) return comba_fail_extent(s, &wide);
  if (!comba_extent_fits(&narrow, 3)) return comba_fail_extent(s, &narrow);
  s->forward_workspace = tokens * d + comba_shape_elements(&wide);
  s->backward_workspace = tokens * d + comba_shape_elements(&narrow);
  return COMBA_OK;
}

/* y (rows, to, n) = resampling along the middle axis of x (rows, from, n) */
static void resample(const real *x, int64_t rows, int64_t from, int64_t to, int64_t n, real *y) {
#pragma omp parallel for collapse(2)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t i = 0; i < to; i++) {
      const comba_axis_taps taps = comba_axis_taps_of(i, from, to);
      const real *p0 = x + (row * from + taps.place[0]) * n, *p1 = x + (row * from + taps.place[1]) * n;
      const real *p2 = x + (row * from + taps.place[2]) * n, *p3 = x + (row * from + taps.place[3]) * n;
      real *out = y + (row * to + i) * n;
#pragma omp simd
      for (int64_t j = 0; j < n; j++)
        out[j] = taps.weight[0] * p0[j] + taps.weight[1] * p1[j] + taps.weight[2] * p2[j] + taps.weight[3] * p3[j];
    }
}

/* dx (rows, from, n) += transpose of that resampling of dy (rows, to, n). Each thread has columns of its own, so that
 * it can add the outputs of an axis in order. */
static void resample_back(const real *dy, int64_t rows, int64_t from, int64_t to, int64_t n, real *dx) {
  enum { COLUMNS = 64 };
#pragma omp parallel for collapse(2)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t left = 0; left < n; left += COLUMNS) {
      const int64_t right = left + COLUMNS < n ? left + COLUMNS : n;
      for (int64_t i = 0; i < to; i++) {
        const comba_axis_taps taps = comba_axis_taps_of(i, from, to);
        const real *in = dy + (row * to + i) * n;
        for (int tap = 0; tap < COMBA_AXIS_TAPS; tap++) {
          real *out = dx + (row * from + taps.place[tap]) * n;
          for (int64_t j = left; j < right; j++) out[j] += taps.weight[tap] * in[j];
        }
      }
    }
}

static void forward(const comba_call *call) {
  const comba_position_embedding_attributes *a = call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t batch = shape->size[0], tokens = shape->size[1], d = shape->size[2];
  const real *x = call->input[X].data, *table = call->input[TABLE].data;
  real *y = call->output[0].data;
  if (resamples(a)) {
    real *resampled = call->workspace, *wide = resampled + tokens * d; /* (N,d), (table_height, width, d) */
    resample(table, a->table_height, a->table_width, a->width, d, wide);
    resample(wide, 1, a->table_height, a->height, a->width * d, resampled);
    table = resampled;
  }
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; b++)
    for (int64_t n = 0; n < tokens; n++)
      for (int64_t j = 0; j < d; j++) y[(b * tokens + n) * d + j] = x[(b * tokens + n) * d + j] + table[n * d + j];
}

/* sums (N,d) = or += sum over B of dy (B,N,d) */
static void sum_batch(const real *dy, int64_t batch, int64_t tokens, int64_t d, bool accumulate, real *sums) {
#pragma omp parallel for
  for (int64_t n = 0; n < tokens; n++) {
    real *sum = sums + n * d;
    if (!accumulate) memset(sum, 0, (size_t)d * sizeof(real));
    for (int64_t b = 0; b < batch; b++)
      for (int64_t j = 0; j < d; j++) sum[j] += dy[(b * tokens + n) * d + j];
  }
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 2)) return;
  const comba_position_embedding_attributes *a = call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t batch = shape->size[0], tokens = shape->size[1], d = shape->size[2], size = batch * tokens * d;
  const real *dy = call->output_gradient[0].data;
  real *dx = call->input_gradient[X].data, *dtable = call->input_gradient[TABLE].data;
  if (dx) {
    const bool accumulate = call->accumulate[X];
#pragma omp parallel for simd
    for (int64_t i = 0; i < size; i++) dx[i] = dy[i] + (accumulate ? dx[i] : 0);
  }
  if (!dtable) return;
  if (!resamples(a)) {
    sum_batch(dy, batch, tokens, d, call->accumulate[TABLE], dtable);
    return;
  }
  real *sums = call->workspace, *narrow = sums + tokens * d; /* (height, width, d), (height, table_width, d) */
  sum_batch(dy, batch, tokens, d, false, sums);
  memset(narrow, 0, (size_t)(a->height * a->table_width * d) * sizeof(real));
  resample_back(sums, a->height, a->table_width, a->width, d, narrow);
  if (!call->accumulate[TABLE]) memset(dtable, 0, (size_t)(a->table_height * a->table_width * d) * sizeof(real));
  resample_back(narrow, 1, a->table_height, a->height, a->table_width * d, dtable);
}

static const comba_case cases[] = {{.name = "one grid", .input = {{COMBA_SHAPE(3, 10, 7)}, {COMBA_SHAPE(1, 10, 7)}}},
                                   {.name = "4 x 3 to 5 x 7",
                                    .attributes = &(const comba_position_embedding_attributes){4, 3, 5, 7},
                                    .input = {{COMBA_SHAPE(2, 35, 6)}, {COMBA_SHAPE(1, 12, 6)}}},
                                   {.name = "7 x 6 to 3 x 4, more than one block of columns",
                                    .attributes = &(const comba_position_embedding_attributes){7, 6, 3, 4},
                                    .input = {{COMBA_SHAPE(2, 12, 70)}, {COMBA_SHAPE(1, 42, 70)}}},
                                   {.name = "as many points in another grid",
                                    .attributes = &(const comba_position_embedding_attributes){2, 8, 4, 4},
                                    .input = {{COMBA_SHAPE(1, 16, 5)}, {COMBA_SHAPE(1, 16, 5)}}},
                                   {.name = "from one point",
                                    .attributes = &(const comba_position_embedding_attributes){1, 1, 2, 3},
                                    .input = {{COMBA_SHAPE(2, 6, 4)}, {COMBA_SHAPE(1, 1, 4)}}},
                                   {.name = "32 x 14 x 14 x 768 from 16 x 16",
                                    .attributes = &(const comba_position_embedding_attributes){16, 16, 14, 14},
                                    .benchmark = true,
                                    .input = {{COMBA_SHAPE(32, 196, 768)}, {COMBA_SHAPE(1, 256, 768)}}},
                                   {0}};

const comba_op COMBA_VARIANT(comba_op_position_embedding) = {
    .name = "position_embedding",
    .formula = "y = x + table, resampled to the grid of x (bicubic)",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_position_embedding_attributes),
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
