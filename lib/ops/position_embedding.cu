/* y (B,N,d) = x + R table, R (N,M) the identity, or cubic resampling from the table's grid to that of x (ops/axis_taps.h)
 * dx = dy;  dtable += R^T sum over B of dy
 *
 * Workspace as on the CPU: what is resampled along one axis, and along both. */
#include "ops/axis_taps.h"
#include "ops/cuda_rows.h"

enum { X, TABLE };

static bool resamples(const comba_position_embedding_attributes *a) {
  return a->table_height != a->height || a->table_width != a->width;
}

/* y (rows, to, n) = resampling along the middle axis of x (rows, from, n) */
static void resample(const float *x, int64_t rows, int64_t from, int64_t to, int64_t n, float *y) {
  comba_each(rows * to * n, [=] __device__(int64_t i) {
    const comba_axis_taps taps = comba_axis_taps_of(i / n % to, from, to);
    const float *in = x + i / n / to * from * n + i % n;
    float sum = 0;
    for (int tap = 0; tap < COMBA_AXIS_TAPS; tap++) sum += taps.weight[tap] * in[taps.place[tap] * n];
    y[i] = sum;
  });
}

/* dx (rows, from, n) += transpose of that resampling of dy (rows, to, n). A thread has a column of its own, so that it can add the
 * outputs of the axis in order. */
static void resample_back(const float *dy, int64_t rows, int64_t from, int64_t to, int64_t n, float *dx) {
  comba_each(rows * n, [=] __device__(int64_t column) {
    const float *in = dy + column / n * to * n + column % n;
    float *out = dx + column / n * from * n + column % n;
    for (int64_t i = 0; i < to; i++) {
      const comba_axis_taps taps = comba_axis_taps_of(i, from, to);
      for (int tap = 0; tap < COMBA_AXIS_TAPS; tap++) out[taps.place[tap] * n] += taps.weight[tap] * in[i * n];
    }
  });
}

template <class T> static void forward(const comba_call *call) {
  const comba_position_embedding_attributes *a = (const comba_position_embedding_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t tokens = shape->size[1], d = shape->size[2];
  const T *x = (const T *)call->input[X].data;
  const float *table = (const float *)call->input[TABLE].data;
  T *y = (T *)call->output[0].data;
  if (resamples(a)) {
    float *resampled = (float *)call->workspace, *wide = resampled + tokens * d; /* (N,d), (table_height, width, d) */
    resample(table, a->table_height, a->table_width, a->width, d, wide);
    resample(wide, 1, a->table_height, a->height, a->width * d, resampled);
    table = resampled;
  }
  comba_each_row(shape->size[0] * tokens, [=] __device__(int64_t row, int64_t lane) {
    const float *position = table + row % tokens * d;
    for (int64_t j = lane; j < d; j += 32) store(y + row * d + j, load(x + row * d + j) + position[j]);
  });
}

/* sums (N d) = or += sum over B of dy (B, N d) */
template <class T> static void sum_batch(const T *dy, int64_t batch, int64_t size, bool accumulate, float *sums) {
  comba_each(size, [=] __device__(int64_t i) {
    float sum = 0;
    for (int64_t b = 0; b < batch; b++) sum += load(dy + b * size + i);
    put(sums + i, sum, accumulate);
  });
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 2, 1u << TABLE)) return;
  const comba_position_embedding_attributes *a = (const comba_position_embedding_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t batch = shape->size[0], tokens = shape->size[1], d = shape->size[2];
  const T *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *dtable = (float *)call->input_gradient[TABLE].data;
  if (dx) {
    const bool accumulate = call->accumulate[X];
    comba_each(batch * tokens * d, [=] __device__(int64_t i) { put(dx + i, load(dy + i), accumulate); });
  }
  if (!dtable) return;
  if (!resamples(a)) {
    sum_batch(dy, batch, tokens * d, call->accumulate[TABLE], dtable);
    return;
  }
  float *sums = (float *)call->workspace,
        *narrow = sums + tokens * d; /* (height, width, d), (height, table_width, d) */
  sum_batch(dy, batch, tokens * d, false, sums);
  comba_cuda_zero(narrow, (size_t)(a->height * a->table_width * d) * sizeof(float));
  resample_back(sums, a->height, a->table_width, a->width, d, narrow);
  if (!call->accumulate[TABLE]) comba_cuda_zero(dtable, (size_t)(a->table_height * a->table_width * d) * sizeof(float));
  resample_back(narrow, 1, a->table_height, a->height, a->table_width * d, dtable);
}

COMBA_CUDA_ROW(position_embedding);
