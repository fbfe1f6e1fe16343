/* Of x (..., n), with r = (relu(x), relu(-x)): y (..., rolls, 2n), y_{j,i} = r_i r_{i-j}, j = 1 to rolls, indices modulo 2n;
 * gradients as dpfp.c has them. */
#include "ops/cuda_rows.h"

/* r_i of a row, -2n <= i < 4n */
template <class T> static __device__ float rectified(const T *x, int64_t n, int64_t i) {
  i += i < 0 ? 2 * n : (i < 2 * n ? 0 : -2 * n);
  const float value = i < n ? load(x + i) : -load(x + i - n);
  return value > 0 ? value : 0;
}

template <class T> static void forward(const comba_call *call) {
  const int64_t rolls = ((const comba_dpfp_attributes *)call->attributes)->rolls, n = cuda_last(&call->input[0]);
  const T *x = (const T *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->output[0].shape), [=] __device__(int64_t at) {
    const int64_t i = at % (2 * n), j = at / (2 * n) % rolls + 1;
    const T *row = x + at / (2 * n) / rolls * n;
    store(y + at, rectified(row, n, i) * rectified(row, n, i - j));
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t rolls = ((const comba_dpfp_attributes *)call->attributes)->rolls, n = cuda_last(&call->input[0]);
  const T *x = (const T *)call->input[0].data, *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[0].data;
  const bool accumulate = call->accumulate[0];
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !dx) return;
  comba_each(comba_shape_elements(&call->input[0].shape), [=] __device__(int64_t at) {
    const float value = load(x + at), sign = value > 0 ? 1 : (value < 0 ? -1 : 0);
    const int64_t i = value > 0 ? at % n : n + at % n;
    const T *row = x + at / n * n, *slope = dy + at / n * 2 * n * rolls;
    float sum = 0;
    for (int64_t j = 1; j <= rolls; j++, slope += 2 * n)
      sum += load(slope + i) * rectified(row, n, i - j) + load(slope + (i + j) % (2 * n)) * rectified(row, n, i + j);
    put(dx + at, sign * sum, accumulate);
  });
}

COMBA_CUDA_ROW(dpfp);
