/* y = x + (z - x) w;  dx = (1 - w) dy;  dz = w dy;  dw = (z - x) dy, summed over the rows where w is one row for all */
#include "ops/cuda_rows.h"

enum { X, Z, W };

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const int64_t d = x->size[x->rank - 1];
  s->backward_workspace = cuda_columns_workspace(comba_shape_elements(x) / d, d);
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const int64_t d = cuda_last(&call->input[X]);
  const bool one_row = call->input[W].shape.rank == 1;
  const T *x = (const T *)call->input[X].data, *z = (const T *)call->input[Z].data;
  const T *w = (const T *)call->input[W].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->input[X].shape), [=] __device__(int64_t i) {
    store(y + i, load(x + i) + (load(z + i) - load(x + i)) * load(w + (one_row ? i % d : i)));
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t rows = cuda_rows(&call->input[X]), d = cuda_last(&call->input[X]);
  const bool one_row = call->input[W].shape.rank == 1;
  const T *x = (const T *)call->input[X].data, *z = (const T *)call->input[Z].data;
  const T *w = (const T *)call->input[W].data, *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[X].data, *dz = (T *)call->input_gradient[Z].data;
  T *dw = (T *)call->input_gradient[W].data;
  const bool add_x = call->accumulate[X], add_z = call->accumulate[Z], add_w = call->accumulate[W];
  if (comba_cuda_gradient_absent<T>(call, 3, 0)) return;
  comba_each(rows * d, [=] __device__(int64_t i) {
    const float gradient = load(dy + i), share = gradient * load(w + (one_row ? i % d : i));
    if (dx) put(dx + i, gradient - share, add_x);
    if (dz) put(dz + i, share, add_z);
    if (dw && !one_row) put(dw + i, gradient * (load(z + i) - load(x + i)), add_w);
  });
  if (dw && one_row)
    cuda_sum_columns(
        rows, d,
        [=] __device__(int64_t row, int64_t j) {
          const int64_t at = row * d + j;
          return load(dy + at) * (load(z + at) - load(x + at));
        },
        (float *)call->workspace, add_w, dw);
}

COMBA_CUDA_ROW(lerp, infer);
