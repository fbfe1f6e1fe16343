/* y (B,T,H,K) = q + s d_h p, s = -1 or 1;  dq = dy;  dp = s d_h dy;  dd_h += s <dy, p> over B, T and K */
#include "core/cuda_kernel.h"

enum { Q, P, D };

static float sign(const comba_call *call) {
  return ((const comba_output_correction_attributes *)call->attributes)->adds ? 1 : -1;
}

static comba_status infer(comba_signature *s) {
  s->backward_workspace = s->input[Q].size[0] * s->input[Q].size[1] * s->input[Q].size[2];
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[Q].shape;
  const int64_t heads = shape->size[2], k = shape->size[3];
  const T *q = (const T *)call->input[Q].data, *p = (const T *)call->input[P].data;
  const float *d = (const float *)call->input[D].data, s = sign(call);
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(shape),
             [=] __device__(int64_t i) { store(y + i, load(q + i) + s * d[i / k % heads] * load(p + i)); });
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[Q].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const T *p = (const T *)call->input[P].data, *dy = (const T *)call->output_gradient[0].data;
  const float *d = (const float *)call->input[D].data, s = sign(call);
  T *dq = (T *)call->input_gradient[Q].data, *dp = (T *)call->input_gradient[P].data;
  float *dd = (float *)call->input_gradient[D].data;
  const bool add_q = call->accumulate[Q], add_p = call->accumulate[P];
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << D)) return;
  if (dd)
    comba_cuda_sum_heads(
        p, dy, tokens, heads, k, (float *)call->workspace, [=] __device__(int64_t) { return s; }, call->accumulate[D],
        dd);
  comba_each(comba_shape_elements(shape), [=] __device__(int64_t i) {
    const float gradient = load(dy + i);
    if (dq) put(dq + i, gradient, add_q);
    if (dp) put(dp + i, s * d[i / k % heads] * gradient, add_p);
  });
}

COMBA_CUDA_ROW(output_correction, infer);
