/* y = n weight + bias,  n = (x - mean) r,  r = 1 / sqrt(variance + epsilon)
 * with u = dy weight:  dx = r (u - mean(u) - n mean(u n));  dweight += dy n;  dbias += dy
 *
 * A warp a row. Saved: mean and r (rows). A weight and bias (H,d) are those of heads: the rows take them in turn. */
#include "ops/cuda_rows.h"

enum { X, WEIGHT, BIAS };
enum { MEAN, RSTD };

/* Elements of the weight or bias, H d or d; d where there is neither. */
static int64_t width_of(const comba_shape *x, const comba_shape *weight, const comba_shape *bias) {
  if (weight->rank) return comba_shape_elements(weight);
  return bias->rank ? comba_shape_elements(bias) : x->size[x->rank - 1];
}

static comba_status infer(comba_signature *s) {
  const int64_t width = width_of(&s->input[X], &s->input[WEIGHT], &s->input[BIAS]);
  s->backward_workspace = cuda_columns_workspace(comba_shape_elements(&s->input[X]) / width, width);
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const int64_t d = cuda_last(&call->input[X]);
  const int64_t heads = width_of(&call->input[X].shape, &call->input[WEIGHT].shape, &call->input[BIAS].shape) / d;
  const float epsilon = (float)((const comba_norm_attributes *)call->attributes)->epsilon;
  const T *x = (const T *)call->input[X].data;
  const float *weight = (const float *)call->input[WEIGHT].data, *bias = (const float *)call->input[BIAS].data;
  T *y = (T *)call->output[0].data;
  float *means = (float *)call->saved[MEAN].data, *rstd = (float *)call->saved[RSTD].data;
  comba_each_row(cuda_rows(&call->input[X]), [=] __device__(int64_t row, int64_t lane) {
    const T *from = x + row * d;
    const int64_t head = row % heads * d;
    const float mean = warp_sum_of(d, lane, [=](int64_t j) { return load(from + j); }) / (float)d;
    const float squares =
        warp_sum_of(d, lane, [=](int64_t j) { return (load(from + j) - mean) * (load(from + j) - mean); });
    const float r = rsqrtf(squares / (float)d + epsilon);
    for (int64_t j = lane; j < d; j += 32)
      store(y + row * d + j,
            (load(from + j) - mean) * r * (weight ? weight[head + j] : 1) + (bias ? bias[head + j] : 0));
    if (means && !lane) {
      means[row] = mean;
      rstd[row] = r;
    }
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t rows = cuda_rows(&call->input[X]), d = cuda_last(&call->input[X]);
  const int64_t width = width_of(&call->input[X].shape, &call->input[WEIGHT].shape, &call->input[BIAS].shape);
  const int64_t heads = width / d;
  const T *x = (const T *)call->input[X].data, *dy = (const T *)call->output_gradient[0].data;
  const float *weight = (const float *)call->input[WEIGHT].data;
  const float *means = (const float *)call->saved[MEAN].data, *rstd = (const float *)call->saved[RSTD].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *dbias = (float *)call->input_gradient[BIAS].data;
  float *partial = (float *)call->workspace;
  const bool accumulate = call->accumulate[X];
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << WEIGHT | 1u << BIAS)) return;
  if (dx)
    comba_each_row(rows, [=] __device__(int64_t row, int64_t lane) {
      const int64_t at = row * d, head = row % heads * d;
      const float mean = means[row], r = rstd[row];
      const auto u = [=](int64_t j) { return load(dy + at + j) * (weight ? weight[head + j] : 1); };
      const float level = warp_sum_of(d, lane, u) / (float)d;
      const float projection =
          warp_sum_of(d, lane, [=](int64_t j) { return u(j) * (load(x + at + j) - mean); }) * r * r / (float)d;
      for (int64_t j = lane; j < d; j += 32)
        put(dx + at + j, r * (u(j) - level - (load(x + at + j) - mean) * projection), accumulate);
    });
  if (dweight)
    cuda_sum_columns(
        rows / heads, width,
        [=] __device__(int64_t token, int64_t j) {
          const int64_t row = token * heads + j / d, at = token * width + j;
          return load(dy + at) * (load(x + at) - means[row]) * rstd[row];
        },
        partial, call->accumulate[WEIGHT], dweight);
  if (dbias)
    cuda_sum_columns(
        rows / heads, width, [=] __device__(int64_t token, int64_t j) { return load(dy + token * width + j); }, partial,
        call->accumulate[BIAS], dbias);
}

COMBA_CUDA_ROW(layer_norm, infer);
