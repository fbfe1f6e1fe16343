/* y (B,T,HS,V) = s x, or with `append` y (B,T,HS,V+1) = s [x, 1]; x (B,T,H,V), s (B,T,HS), whose head h reads head h / (HS/H) of x
 * ds = <dy, [x, 1]>;  dx = sum over the heads of s that read it of s dy */
#include "ops/cuda_rows.h"

enum { X, S };

template <class T> static void forward(const comba_call *call) {
  const int64_t V = cuda_last(&call->input[X]), width = cuda_last(&call->output[0]);
  const int64_t group = cuda_rows(&call->output[0]) / cuda_rows(&call->input[X]);
  const T *x = (const T *)call->input[X].data;
  const float *s = (const float *)call->input[S].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->output[0].shape), [=] __device__(int64_t i) {
    const int64_t row = i / width, j = i % width;
    store(y + i, s[row] * (j < V ? load(x + row / group * V + j) : 1));
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t V = cuda_last(&call->input[X]), width = cuda_last(&call->output[0]);
  const int64_t readers = cuda_rows(&call->output[0]), group = readers / cuda_rows(&call->input[X]);
  const T *x = (const T *)call->input[X].data, *dy = (const T *)call->output_gradient[0].data;
  const float *s = (const float *)call->input[S].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *ds = (float *)call->input_gradient[S].data;
  const bool add_x = call->accumulate[X], add_s = call->accumulate[S];
  if (comba_cuda_gradient_absent<T>(call, 2, 1u << S)) return;
  if (dx)
    comba_each(comba_shape_elements(&call->input[X].shape), [=] __device__(int64_t i) {
      const int64_t first = i / V * group;
      float sum = 0;
      for (int64_t reader = first; reader < first + group; reader++)
        sum += s[reader] * load(dy + reader * width + i % V);
      put(dx + i, sum, add_x);
    });
  if (ds)
    comba_each_row(readers, [=] __device__(int64_t reader, int64_t lane) {
      const T *from = x + reader / group * V, *slope = dy + reader * width;
      const float sum =
          warp_sum_of(width, lane, [=](int64_t j) { return load(slope + j) * (j < V ? load(from + j) : 1); });
      if (!lane) put(ds + reader, sum, add_s);
    });
}

COMBA_CUDA_ROW(token_scale);
