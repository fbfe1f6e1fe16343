/* y = scale a b;  da = scale b dy;  db = scale a dy, summed over the rows where b is one row for all */
#include "ops/cuda_rows.h"

enum { A, B };

static comba_status infer(comba_signature *s) {
  const comba_shape *a = &s->input[A];
  const int64_t d = a->size[a->rank - 1];
  s->backward_workspace = cuda_columns_workspace(comba_shape_elements(a) / d, d);
  return COMBA_OK;
}

static float scale_of(const comba_call *call) {
  const comba_product_attributes *attributes = (const comba_product_attributes *)call->attributes;
  return attributes->scale == 0 ? 1 : (float)attributes->scale;
}

template <class T> static void forward(const comba_call *call) {
  const int64_t d = cuda_last(&call->input[A]);
  const bool one_row = call->input[B].shape.rank == 1;
  const float scale = scale_of(call);
  const T *a = (const T *)call->input[A].data, *b = (const T *)call->input[B].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->input[A].shape),
             [=] __device__(int64_t i) { store(y + i, scale * load(a + i) * load(b + (one_row ? i % d : i))); });
}

/* product(x, x) has one gradient for both: the first operand overwrites it, then the second adds. */
template <class T> static void backward(const comba_call *call) {
  const int64_t rows = cuda_rows(&call->input[A]), d = cuda_last(&call->input[A]);
  const bool one_row = call->input[B].shape.rank == 1, add_a = call->accumulate[A], add_b = call->accumulate[B];
  const float scale = scale_of(call);
  const T *a = (const T *)call->input[A].data, *b = (const T *)call->input[B].data;
  const T *dy = (const T *)call->output_gradient[0].data;
  T *da = (T *)call->input_gradient[A].data, *db = (T *)call->input_gradient[B].data;
  if (comba_cuda_gradient_absent<T>(call, 2, 0)) return;
  comba_each(rows * d, [=] __device__(int64_t i) {
    const float gradient = scale * load(dy + i);
    if (da) put(da + i, gradient * load(b + (one_row ? i % d : i)), add_a);
    if (db && !one_row) put(db + i, gradient * load(a + i), add_b);
  });
  if (db && one_row)
    cuda_sum_columns(
        rows, d,
        [=] __device__(int64_t row, int64_t j) { return scale * load(a + row * d + j) * load(dy + row * d + j); },
        (float *)call->workspace, add_b, db);
}

COMBA_CUDA_ROW(product, infer);
