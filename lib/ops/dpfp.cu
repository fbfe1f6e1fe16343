/* Of x (..., n), with r = (relu(x), relu(-x)): y (..., rolls, 2n), y_{j,i} = r_i r_{i-j}, j = 1 to rolls, indices modulo 2n;
 * one_sided and gradients as dpfp.c has them. */
#include "ops/cuda_rows.h"

/* r_i of a row, -2n <= i < 4n */
template <class T> static __device__ float rectified(const T *x, int64_t n, int64_t i, bool one_sided) {
  i += i < 0 ? 2 * n : (i < 2 * n ? 0 : -2 * n);
  const float value = load(x + i % n);
  if (i < n) return value > 0 ? value : 0;
  return one_sided == (value > 0) ? -value : 0;
}

/* dr_i of one row */
template <class T>
static __device__ float slope(const T *x, int64_t n, comba_dpfp_attributes attributes, const T *dy, int64_t i) {
  float sum = 0;
  for (int64_t j = 1; j <= attributes.rolls; j++, dy += 2 * n)
    sum += load(dy + i) * rectified(x, n, i - j, attributes.one_sided) +
           load(dy + (i + j) % (2 * n)) * rectified(x, n, i + j, attributes.one_sided);
  return sum;
}

template <class T> static void forward(const comba_call *call) {
  const comba_dpfp_attributes attributes = *(const comba_dpfp_attributes *)call->attributes;
  const int64_t n = cuda_last(&call->input[0]);
  const T *x = (const T *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->output[0].shape), [=] __device__(int64_t at) {
    const int64_t i = at % (2 * n), j = at / (2 * n) % attributes.rolls + 1;
    const T *row = x + at / (2 * n) / attributes.rolls * n;
    store(y + at, rectified(row, n, i, attributes.one_sided) * rectified(row, n, i - j, attributes.one_sided));
  });
}

template <class T> static void backward(const comba_call *call) {
  const comba_dpfp_attributes attributes = *(const comba_dpfp_attributes *)call->attributes;
  const int64_t n = cuda_last(&call->input[0]);
  const T *x = (const T *)call->input[0].data, *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[0].data;
  const bool accumulate = call->accumulate[0];
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !dx) return;
  comba_each(comba_shape_elements(&call->input[0].shape), [=] __device__(int64_t at) {
    const float value = load(x + at);
    const T *row = x + at / n * n, *own = dy + at / n * 2 * n * attributes.rolls;
    float to_x = value > 0 ? slope(row, n, attributes, own, at % n) : 0;
    if (attributes.one_sided ? value > 0 : value < 0) to_x -= slope(row, n, attributes, own, n + at % n);
    put(dx + at, to_x, accumulate);
  });
}

COMBA_CUDA_ROW(dpfp);
