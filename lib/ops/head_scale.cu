/* y (B,T,H,K) = sigmoid(s_h) x;  dx = sigmoid(s_h) dy;  ds_h += sigmoid(s_h) sigmoid(-s_h) <dy, x> over B, T and K */
#include "core/cuda_kernel.h"

enum { X, S };

static comba_status infer(comba_signature *s) {
  s->forward_workspace = 0;
  s->backward_workspace = s->input[X].size[0] * s->input[X].size[1] * s->input[X].size[2];
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t heads = shape->size[2], k = shape->size[3];
  const T *x = (const T *)call->input[X].data;
  const float *s = (const float *)call->input[S].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(shape),
             [=] __device__(int64_t i) { store(y + i, load(x + i) * sigmoid(s[i / k % heads])); });
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const T *x = (const T *)call->input[X].data, *dy = (const T *)call->output_gradient[0].data;
  const float *s = (const float *)call->input[S].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *ds = (float *)call->input_gradient[S].data;
  const bool accumulate = call->accumulate[X];
  if (comba_cuda_gradient_absent<T>(call, 2, 1u << S)) return;
  if (ds)
    comba_cuda_sum_heads(
        x, dy, tokens, heads, k, (float *)call->workspace,
        [=] __device__(int64_t h) { return sigmoid(s[h]) * sigmoid(-s[h]); }, call->accumulate[S], ds);
  if (dx)
    comba_each(comba_shape_elements(shape),
               [=] __device__(int64_t i) { put(dx + i, load(dy + i) * sigmoid(s[i / k % heads]), accumulate); });
}

COMBA_CUDA_ROW(head_scale, infer);
