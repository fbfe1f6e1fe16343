/* dt = clamp(softplus(raw + dt_bias_h), minimum, maximum);  v (B,T,H,P) = dt x;  g (B,T,H) = max(-100, -e^A_log_h dt);
 * gradients as time_step.c has them. */
#include "ops/cuda_gates.h"
#include "ops/cuda_rows.h"

enum { X, RAW, A_LOG, DT_BIAS };
enum { V, G };
static const float FLOOR = -100;

static comba_status infer(comba_signature *s) {
  s->backward_workspace = 2 * comba_shape_elements(&s->input[RAW]); /* what each token adds to dA_log and ddt_bias */
  return COMBA_OK;
}

template <class T> struct step {
  int64_t heads, p; /* H, P */
  float minimum, maximum;
  const T *raw;
  const float *a_log, *bias;

  __device__ float unclamped(int64_t row) const {
    return softplus(load(raw + row) + bias[row % heads]);
  }
  /* A NaN passes, so that it shows. */
  __device__ float clamped(float dt) const {
    return dt < minimum ? minimum : dt > maximum ? maximum : dt;
  }
  __device__ float rate(int64_t row) const {
    return -expf(a_log[row % heads]);
  }
};

template <class T> static step<T> step_of(const comba_call *call) {
  const comba_time_step_attributes *attributes = (const comba_time_step_attributes *)call->attributes;
  return {call->input[X].shape.size[2],
          call->input[X].shape.size[3],
          (float)attributes->minimum,
          attributes->maximum == 0 ? INFINITY : (float)attributes->maximum,
          (const T *)call->input[RAW].data,
          (const float *)call->input[A_LOG].data,
          (const float *)call->input[DT_BIAS].data};
}

template <class T> static void forward(const comba_call *call) {
  const step<T> s = step_of<T>(call);
  const T *x = (const T *)call->input[X].data;
  T *v = (T *)call->output[V].data;
  float *g = (float *)call->output[G].data;
  comba_each_row(cuda_rows(&call->input[X]), [=] __device__(int64_t row, int64_t lane) {
    const float dt = s.clamped(s.unclamped(row)), decay = s.rate(row) * dt;
    for (int64_t j = row * s.p + lane; j < (row + 1) * s.p; j += 32) store(v + j, dt * load(x + j));
    if (!lane) g[row] = decay < FLOOR ? FLOOR : decay;
  });
}

template <class T> static void backward(const comba_call *call) {
  const step<T> s = step_of<T>(call);
  const int64_t rows = cuda_rows(&call->input[X]);
  const T *x = (const T *)call->input[X].data, *dv = (const T *)call->output_gradient[V].data;
  const float *dg = (const float *)call->output_gradient[G].data;
  T *dx = (T *)call->input_gradient[X].data, *draw = (T *)call->input_gradient[RAW].data;
  float *da_log = (float *)call->input_gradient[A_LOG].data, *dbias = (float *)call->input_gradient[DT_BIAS].data;
  float *to_a_log = (float *)call->workspace, *to_bias = to_a_log + rows;
  const bool add_x = call->accumulate[X], add_raw = call->accumulate[RAW];
  comba_each_row(rows, [=] __device__(int64_t row, int64_t lane) {
    const int64_t at = row * s.p;
    const float free = s.unclamped(row), dt = s.clamped(free), rate = s.rate(row);
    const float slope = dg && rate * dt > FLOOR ? rate * dg[row] : 0;
    const float along =
        dv ? warp_sum_of(s.p, lane, [=](int64_t j) { return load(dv + at + j) * load(x + at + j); }) : 0;
    if (dx)
      for (int64_t j = lane; j < s.p; j += 32) put(dx + at + j, dv ? dt * load(dv + at + j) : 0, add_x);
    if (lane) return;
    const bool moves = free >= s.minimum && free <= s.maximum;
    const float du = moves ? (slope + along) * precise_sigmoid(load(s.raw + row) + s.bias[row % s.heads]) : 0;
    to_a_log[row] = slope * dt;
    to_bias[row] = du;
    if (draw) put(draw + row, du, add_raw);
  });
  const auto one = [] __device__(int64_t) { return 1.0f; };
  const int64_t tokens = rows / s.heads;
  if (da_log) comba_cuda_sum_products(to_a_log, tokens, s.heads, one, call->accumulate[A_LOG], da_log);
  if (dbias) comba_cuda_sum_products(to_bias, tokens, s.heads, one, call->accumulate[DT_BIAS], dbias);
}

COMBA_CUDA_ROW(time_step, infer);
