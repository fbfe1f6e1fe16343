/* y (B,d) = 1/N sum over n of x (B,N,d);  dx[b, n] = dy[b] / N. A thread a channel, so that a warp reads neighbours. */
#include "core/cuda_kernel.h"

enum { X };

template <class T> static void forward(const comba_call *call) {
  const int64_t *size = call->input[X].shape.size;
  const int64_t tokens = size[1], d = size[2];
  const T *x = (const T *)call->input[X].data;
  T *y = (T *)call->output[0].data;
  comba_each(size[0] * d, [=] __device__(int64_t i) {
    const T *column = x + i / d * tokens * d + i % d;
    float sum = 0;
    for (int64_t n = 0; n < tokens; n++) sum += load(column + n * d);
    store(y + i, sum / (float)tokens);
  });
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  const int64_t *size = call->input[X].shape.size;
  const int64_t tokens = size[1], d = size[2];
  const T *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[X].data;
  const bool accumulate = call->accumulate[X];
  comba_each(size[0] * tokens * d, [=] __device__(int64_t i) {
    put(dx + i, load(dy + i / (tokens * d) * d + i % d) / (float)tokens, accumulate);
  });
}

COMBA_CUDA_ROW(mean_pool);
