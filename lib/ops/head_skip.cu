/* z (B,T,H,K) = y + d_h x;  dy = dz;  dx = d_h dz;  dd_h += <dz, x> over B, T and K */
#include "ops/cuda_row_span.h"

enum { Y, X, D };

static comba_status infer(comba_signature *s) {
  const int64_t *size = s->input[Y].size;
  s->backward_workspace = row_parts(size[0] * size[1] * size[2], size[2], size[3]);
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[Y].shape;
  const int64_t heads = shape->size[2], k = shape->size[3];
  const T *y = (const T *)call->input[Y].data, *x = (const T *)call->input[X].data;
  const float *d = (const float *)call->input[D].data;
  T *z = (T *)call->output[0].data;
  comba_map_rows(
      shape->size[0] * shape->size[1] * heads, k, z,
      [=] __device__(int64_t row, float y, float x) { return y + d[row % heads] * x; }, y, x);
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[Y].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const T *x = (const T *)call->input[X].data, *dz = (const T *)call->output_gradient[0].data;
  const float *d = (const float *)call->input[D].data;
  const map_target<T> dy = {(T *)call->input_gradient[Y].data, call->accumulate[Y]};
  const map_target<T> dx = {(T *)call->input_gradient[X].data, call->accumulate[X]};
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << D)) return;
  comba_scale_gradient(
      x, dz, tokens, heads, k, [=] __device__(int64_t h) { return d[h]; }, dy, dx, (float *)call->workspace,
      [] __device__(int64_t) { return 1.0f; }, call->accumulate[D], (float *)call->input_gradient[D].data);
}

COMBA_CUDA_ROW(head_skip, infer);
