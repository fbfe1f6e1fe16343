/* h = y_{0..V-1} r,  r = 1 / (max(|y_V|, e^-m) + epsilon), y (B,T,H,V+1);  dy = r dh;  with D = r <dh, h>:
 * dy_V = -sign(y_V) D where |y_V| is the larger, else dm = e^-m D. A warp a row. */
#include "ops/cuda_rows.h"

enum { Y, MAXIMUM };

/* e^-m may be infinite: m falls without end where a head forgets and takes nothing in; then r is 0. */
static __device__ float reciprocal(float normalizer, float m, float epsilon) {
  const float size = fabsf(normalizer), bound = expf(-m);
  return 1 / ((size > bound ? size : bound) + epsilon);
}

template <class T> static void forward(const comba_call *call) {
  const int64_t V = cuda_last(&call->output[0]);
  const float epsilon = (float)((const comba_norm_attributes *)call->attributes)->epsilon;
  const T *y = (const T *)call->input[Y].data;
  const float *m = (const float *)call->input[MAXIMUM].data;
  T *h = (T *)call->output[0].data;
  comba_each_row(cuda_rows(&call->input[Y]), [=] __device__(int64_t row, int64_t lane) {
    const T *from = y + row * (V + 1);
    const float r = reciprocal(load(from + V), m[row], epsilon);
    for (int64_t j = lane; j < V; j += 32) store(h + row * V + j, r * load(from + j));
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t V = cuda_last(&call->output[0]);
  const float epsilon = (float)((const comba_norm_attributes *)call->attributes)->epsilon;
  const T *y = (const T *)call->input[Y].data, *dh = (const T *)call->output_gradient[0].data;
  const float *m = (const float *)call->input[MAXIMUM].data;
  T *dy = (T *)call->input_gradient[Y].data;
  float *dm = (float *)call->input_gradient[MAXIMUM].data;
  const bool add_y = call->accumulate[Y], add_m = call->accumulate[MAXIMUM];
  if (comba_cuda_gradient_absent<T>(call, 2, 1u << MAXIMUM)) return;
  comba_each_row(cuda_rows(&call->input[Y]), [=] __device__(int64_t row, int64_t lane) {
    const int64_t at = row * (V + 1);
    const float normalizer = load(y + at + V), r = reciprocal(normalizer, m[row], epsilon);
    const float read = r * warp_sum_of(V, lane, [=](int64_t j) { return load(dh + row * V + j) * load(y + at + j); });
    const bool bounded = fabsf(normalizer) <= expf(-m[row]);
    if (dy)
      for (int64_t j = lane; j < V; j += 32) put(dy + at + j, r * load(dh + row * V + j), add_y);
    if (lane) return;
    if (dy) put(dy + at + V, bounded ? 0 : (normalizer > 0 ? -r : r) * read, add_y);
    /* e^-m r, which stays finite where e^-m does not */
    if (dm) put(dm + row, bounded ? read / (1 + epsilon * expf(m[row])) : 0, add_m);
  });
}

COMBA_CUDA_ROW(normalized_read);
