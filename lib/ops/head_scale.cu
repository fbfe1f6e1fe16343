/* y (B,T,H,K) = sigmoid(s_h) x;  dx = sigmoid(s_h) dy;  ds_h += sigmoid(s_h) sigmoid(-s_h) <dy, x> over B, T and K */
#include "ops/cuda_row_span.h"

enum { X, S };

static comba_status infer(comba_signature *s) {
  s->forward_workspace = 0;
  const int64_t *size = s->input[X].size;
  s->backward_workspace = row_parts(size[0] * size[1] * size[2], size[2]);
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t heads = shape->size[2], k = shape->size[3];
  const T *x = (const T *)call->input[X].data;
  const float *s = (const float *)call->input[S].data;
  T *y = (T *)call->output[0].data;
  comba_map_rows(
      shape->size[0] * shape->size[1] * heads, k, y,
      [=] __device__(int64_t row, float x) { return x * sigmoid(s[row % heads]); }, x);
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const T *x = (const T *)call->input[X].data, *dy = (const T *)call->output_gradient[0].data;
  const float *s = (const float *)call->input[S].data;
  const map_target<T> none = {}, dx = {(T *)call->input_gradient[X].data, call->accumulate[X]};
  if (comba_cuda_gradient_absent<T>(call, 2, 1u << S)) return;
  comba_scale_gradient(
      x, dy, tokens, heads, k, [=] __device__(int64_t h) { return sigmoid(s[h]); }, none, dx, (float *)call->workspace,
      [=] __device__(int64_t h) { return sigmoid(s[h]) * sigmoid(-s[h]); }, call->accumulate[S],
      (float *)call->input_gradient[S].data);
}

COMBA_CUDA_ROW(head_scale, infer);
