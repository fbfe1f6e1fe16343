/* y (..., n) = x r,  r = 1 / (d + epsilon), d (..., 1);  dx = r dy,  dd = -r <y, dy>. A warp a row. */
#include "ops/cuda_rows.h"

enum { X, DIVISOR };

template <class T> static void forward(const comba_call *call) {
  const int64_t n = cuda_last(&call->input[X]);
  const float epsilon = (float)((const comba_norm_attributes *)call->attributes)->epsilon;
  const T *x = (const T *)call->input[X].data, *divisor = (const T *)call->input[DIVISOR].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->input[X].shape),
             [=] __device__(int64_t i) { store(y + i, load(x + i) / (load(divisor + i / n) + epsilon)); });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t n = cuda_last(&call->input[X]);
  const float epsilon = (float)((const comba_norm_attributes *)call->attributes)->epsilon;
  const T *divisor = (const T *)call->input[DIVISOR].data, *y = (const T *)call->output[0].data;
  const T *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[X].data, *dd = (T *)call->input_gradient[DIVISOR].data;
  const bool add_x = call->accumulate[X], add_divisor = call->accumulate[DIVISOR];
  if (comba_cuda_gradient_absent<T>(call, 2, 0)) return;
  comba_each_row(cuda_rows(&call->input[X]), [=] __device__(int64_t row, int64_t lane) {
    const int64_t at = row * n;
    const float r = 1 / (load(divisor + row) + epsilon);
    const float along = warp_sum_of(n, lane, [=](int64_t j) { return load(y + at + j) * load(dy + at + j); });
    if (dx)
      for (int64_t j = lane; j < n; j += 32) put(dx + at + j, r * load(dy + at + j), add_x);
    if (dd && !lane) put(dd + row, -r * along, add_divisor);
  });
}

COMBA_CUDA_ROW(divide);
