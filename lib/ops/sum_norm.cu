/* y = x r,  r = 1 / (sum(x) + epsilon), or 0 where the divisor is 0;  dx = r (dy - <y, dy>). A warp a row. Saved: r (rows). */
#include "ops/cuda_rows.h"

template <class T> static void forward(const comba_call *call) {
  const int64_t d = cuda_last(&call->input[0]);
  const float epsilon = (float)((const comba_norm_attributes *)call->attributes)->epsilon;
  const T *x = (const T *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  float *reciprocals = (float *)call->saved[0].data;
  comba_each_row(cuda_rows(&call->input[0]), [=] __device__(int64_t row, int64_t lane) {
    const int64_t at = row * d;
    const float sum = epsilon + warp_sum_of(d, lane, [=](int64_t j) { return load(x + at + j); });
    const float r = sum == 0 ? 0 : 1 / sum;
    for (int64_t j = lane; j < d; j += 32) store(y + at + j, r * load(x + at + j));
    if (reciprocals && !lane) reciprocals[row] = r;
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t d = cuda_last(&call->input[0]);
  const T *y = (const T *)call->output[0].data, *dy = (const T *)call->output_gradient[0].data;
  const float *reciprocals = (const float *)call->saved[0].data;
  T *dx = (T *)call->input_gradient[0].data;
  const bool accumulate = call->accumulate[0];
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !dx) return;
  comba_each_row(cuda_rows(&call->input[0]), [=] __device__(int64_t row, int64_t lane) {
    const int64_t at = row * d;
    const float mean = warp_sum_of(d, lane, [=](int64_t j) { return load(y + at + j) * load(dy + at + j); });
    for (int64_t j = lane; j < d; j += 32) put(dx + at + j, reciprocals[row] * (load(dy + at + j) - mean), accumulate);
  });
}

COMBA_CUDA_ROW(sum_norm);
