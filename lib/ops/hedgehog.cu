/* y (..., 2n) = softmax(2 x, -2 x), x (..., n);  dx_j = 2 (y_j (dy_j - m) - y_{n+j} (dy_{n+j} - m)),  m = <y, dy>
 *
 * A warp a row. The largest of the exponents is that of |x|. */
#include "ops/cuda_rows.h"

template <class T> static void forward(const comba_call *call) {
  const int64_t n = cuda_last(&call->input[0]);
  const T *x = (const T *)call->input[0].data;
  T *y = (T *)call->output[0].data;
  comba_each_row(cuda_rows(&call->input[0]), [=] __device__(int64_t row, int64_t lane) {
    const T *from = x + row * n;
    T *to = y + row * 2 * n;
    float largest = 0;
    for (int64_t j = lane; j < n; j += 32) largest = fmaxf(largest, fabsf(load(from + j)));
    largest = warp_max(largest);
    const auto power = [=](float value) { return expf(2 * (value - largest)); };
    const float r = 1 / warp_sum_of(n, lane, [=](int64_t j) { return power(load(from + j)) + power(-load(from + j)); });
    for (int64_t j = lane; j < n; j += 32) {
      store(to + j, power(load(from + j)) * r);
      store(to + n + j, power(-load(from + j)) * r);
    }
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t n = cuda_last(&call->input[0]);
  const T *y = (const T *)call->output[0].data, *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[0].data;
  const bool accumulate = call->accumulate[0];
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !dx) return;
  comba_each_row(cuda_rows(&call->input[0]), [=] __device__(int64_t row, int64_t lane) {
    const int64_t at = row * 2 * n;
    const float mean = warp_sum_of(2 * n, lane, [=](int64_t j) { return load(y + at + j) * load(dy + at + j); });
    const auto slope = [=](int64_t i) { return load(y + i) * (load(dy + i) - mean); };
    for (int64_t j = lane; j < n; j += 32) put(dx + row * n + j, 2 * (slope(at + j) - slope(at + n + j)), accumulate);
  });
}

COMBA_CUDA_ROW(hedgehog);
