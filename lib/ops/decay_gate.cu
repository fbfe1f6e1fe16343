/* g (B,T,H) = max(-100, ungated g), the gates and their gradients as decay_gate.c has them. */
#include "ops/cuda_gates.h"

enum { A, A_LOG, DT_BIAS };
static const float FLOOR = -100;

static comba_status infer(comba_signature *s) {
  s->forward_workspace = 0;
  s->backward_workspace = 2 * comba_shape_elements(&s->input[A]); /* du, and what each token adds to dA_log */
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const comba_decay_kind kind = ((const comba_decay_gate_attributes *)call->attributes)->kind;
  const int64_t heads = call->input[A].shape.size[2];
  const T *a = (const T *)call->input[A].data;
  const float *a_log = (const float *)call->input[A_LOG].data, *bias = (const float *)call->input[DT_BIAS].data;
  float *g = (float *)call->output[0].data;
  comba_each(comba_shape_elements(&call->input[A].shape), [=] __device__(int64_t i) {
    const int64_t h = i % heads;
    g[i] = decay_gate_value(kind, load(a + i), a_log + h, bias + h);
  });
}

template <class T> static void backward(const comba_call *call) {
  const comba_decay_kind kind = ((const comba_decay_gate_attributes *)call->attributes)->kind;
  const int64_t heads = call->input[A].shape.size[2], count = comba_shape_elements(&call->input[A].shape);
  const T *a = (const T *)call->input[A].data;
  const float *a_log = (const float *)call->input[A_LOG].data, *bias = (const float *)call->input[DT_BIAS].data;
  const float *g = (const float *)call->output[0].data, *dg = (const float *)call->output_gradient[0].data;
  T *da = (T *)call->input_gradient[A].data;
  float *da_log = (float *)call->input_gradient[A_LOG].data, *dbias = (float *)call->input_gradient[DT_BIAS].data;
  float *to_bias = (float *)call->workspace, *to_a_log = to_bias + count;
  const bool accumulate = call->accumulate[A];
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << A_LOG | 1u << DT_BIAS)) return;
  comba_each(count, [=] __device__(int64_t i) {
    const int64_t h = i % heads;
    float du = 0, slope = 0;
    if (g[i] > FLOOR) switch (kind) {
      case COMBA_DECAY_MAMBA2:
        du = -dg[i] * expf(a_log[h]) * precise_sigmoid(load(a + i) + bias[h]);
        slope = g[i] * dg[i];
        break;
      case COMBA_DECAY_SIGMOID: du = dg[i] * precise_sigmoid(-load(a + i) - bias[h]); break;
      case COMBA_DECAY_CONSTANT:
        du = -dg[i] * expf(a_log[h]) * precise_sigmoid(bias[h]);
        slope = g[i] * dg[i];
        break;
      case COMBA_DECAY_ONE: break;
      }
    to_bias[i] = du;
    to_a_log[i] = slope;
    if (da) put(da + i, kind == COMBA_DECAY_MAMBA2 || kind == COMBA_DECAY_SIGMOID ? du : 0, accumulate);
  });
  const auto one = [] __device__(int64_t) { return 1.0f; };
  if (dbias) comba_cuda_sum_products(to_bias, count / heads, heads, one, call->accumulate[DT_BIAS], dbias);
  if (da_log) comba_cuda_sum_products(to_a_log, count / heads, heads, one, call->accumulate[A_LOG], da_log);
}

COMBA_CUDA_ROW(decay_gate, infer);
