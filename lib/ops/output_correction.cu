/* y (B,T,H,K) = q + s d_h p, s = -1 or 1;  dq = dy;  dp = s d_h dy;  dd_h += s <dy, p> over B, T and K */
#include "ops/cuda_row_span.h"

enum { Q, P, D };

static float sign(const comba_call *call) {
  return ((const comba_output_correction_attributes *)call->attributes)->adds ? 1 : -1;
}

static comba_status infer(comba_signature *s) {
  const int64_t *size = s->input[Q].size;
  s->backward_workspace = row_parts(size[0] * size[1] * size[2], size[2]);
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[Q].shape;
  const int64_t heads = shape->size[2], k = shape->size[3];
  const T *q = (const T *)call->input[Q].data, *p = (const T *)call->input[P].data;
  const float *d = (const float *)call->input[D].data, s = sign(call);
  T *y = (T *)call->output[0].data;
  comba_map_rows(
      shape->size[0] * shape->size[1] * heads, k, y,
      [=] __device__(int64_t row, float q, float p) { return q + s * d[row % heads] * p; }, q, p);
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[Q].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], k = shape->size[3];
  const T *p = (const T *)call->input[P].data, *dy = (const T *)call->output_gradient[0].data;
  const float *d = (const float *)call->input[D].data, s = sign(call);
  const map_target<T> dq = {(T *)call->input_gradient[Q].data, call->accumulate[Q]};
  const map_target<T> dp = {(T *)call->input_gradient[P].data, call->accumulate[P]};
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << D)) return;
  comba_scale_gradient(
      p, dy, tokens, heads, k, [=] __device__(int64_t h) { return s * d[h]; }, dq, dp, (float *)call->workspace,
      [=] __device__(int64_t) { return s; }, call->accumulate[D], (float *)call->input_gradient[D].data);
}

COMBA_CUDA_ROW(output_correction, infer);
