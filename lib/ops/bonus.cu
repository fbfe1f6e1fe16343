/* y = o + c v,  c (B,T,H) = sum_i r_i k_i w_hi;  do = dy;  dv = c dy;  with e = <dy, v>:  dr = e k w;  dk = e r w;
 * dw_h += e r k over B and T. A warp a row. */
#include "ops/cuda_rows.h"

enum { O, R, KEY, V, W };

static comba_status infer(comba_signature *s) {
  const int64_t *size = s->input[R].size, tokens = size[0] * size[1];
  s->backward_workspace = tokens * size[2] + cuda_columns_workspace(tokens, size[2] * size[3]);
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const int64_t heads = call->input[R].shape.size[2], K = cuda_last(&call->input[R]), size = cuda_last(&call->input[O]);
  const T *o = (const T *)call->input[O].data, *v = (const T *)call->input[V].data;
  const T *r = (const T *)call->input[R].data, *k = (const T *)call->input[KEY].data;
  const float *w = (const float *)call->input[W].data;
  T *y = (T *)call->output[0].data;
  comba_each_row(cuda_rows(&call->input[R]), [=] __device__(int64_t row, int64_t lane) {
    const int64_t at = row * K, head = row % heads * K;
    const float c = warp_sum_of(K, lane, [=](int64_t i) { return load(r + at + i) * load(k + at + i) * w[head + i]; });
    for (int64_t i = row * size + lane; i < (row + 1) * size; i += 32) store(y + i, load(o + i) + c * load(v + i));
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t heads = call->input[R].shape.size[2], K = cuda_last(&call->input[R]), size = cuda_last(&call->input[O]);
  const int64_t rows = cuda_rows(&call->input[R]);
  const T *r = (const T *)call->input[R].data, *k = (const T *)call->input[KEY].data;
  const T *v = (const T *)call->input[V].data, *dy = (const T *)call->output_gradient[0].data;
  const float *w = (const float *)call->input[W].data;
  T *d_o = (T *)call->input_gradient[O].data, *dr = (T *)call->input_gradient[R].data;
  T *dk = (T *)call->input_gradient[KEY].data, *dv = (T *)call->input_gradient[V].data;
  float *dw = (float *)call->input_gradient[W].data;
  const bool add_o = call->accumulate[O], add_r = call->accumulate[R], add_k = call->accumulate[KEY];
  const bool add_v = call->accumulate[V];
  float *along = (float *)call->workspace, *partial = along + rows; /* e of each row */
  if (comba_cuda_gradient_absent<T>(call, 5, 1u << W)) return;
  comba_each_row(rows, [=] __device__(int64_t row, int64_t lane) {
    const int64_t at = row * K, value = row * size, head = row % heads * K;
    const float e = warp_sum_of(size, lane, [=](int64_t i) { return load(dy + value + i) * load(v + value + i); });
    const float c = warp_sum_of(K, lane, [=](int64_t i) { return load(r + at + i) * load(k + at + i) * w[head + i]; });
    for (int64_t i = lane; i < size; i += 32) {
      if (d_o) put(d_o + value + i, load(dy + value + i), add_o);
      if (dv) put(dv + value + i, c * load(dy + value + i), add_v);
    }
    for (int64_t i = lane; i < K; i += 32) {
      if (dr) put(dr + at + i, e * load(k + at + i) * w[head + i], add_r);
      if (dk) put(dk + at + i, e * load(r + at + i) * w[head + i], add_k);
    }
    if (!lane) along[row] = e;
  });
  if (dw)
    cuda_sum_columns(
        rows / heads, heads * K,
        [=] __device__(int64_t token, int64_t j) {
          const int64_t at = token * heads * K + j;
          return along[at / K] * load(r + at) * load(k + at);
        },
        partial, call->accumulate[W], dw);
}

COMBA_CUDA_ROW(bonus, infer);
