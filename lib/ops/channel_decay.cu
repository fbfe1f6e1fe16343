/* g (B,T,H,K) = max(minimum, f(x)), log decay of each channel; kinds and gradients as channel_decay.c has them. */
#include "ops/cuda_gates.h"
#include "ops/cuda_rows.h"

enum { X, A_LOG, DT_BIAS };
static const float FLOOR = -100;

/* Gradients of A_log: sums over tokens of each channel (H K), which are then added up by heads. */
static comba_status infer(comba_signature *s) {
  const int64_t *size = s->input[X].size, channels = size[2] * size[3];
  s->backward_workspace = channels + cuda_columns_workspace(size[0] * size[1], channels);
  return COMBA_OK;
}

template <class T> struct gate {
  comba_channel_kind kind;
  int64_t tokens, channels, K;
  float scale, minimum;
  const T *x;
  const float *a_log, *bias;

  __device__ float rate(int64_t c) const {
    return a_log ? expf(a_log[c / K]) : 1;
  }
  __device__ float shifted(int64_t i, int64_t c) const {
    return load(x + i) + (bias ? bias[c] : 0);
  }
  __device__ float value(int64_t i) const {
    const int64_t c = i % channels;
    const float u = shifted(i, c), r = rate(c);
    switch (kind) {
    case COMBA_CHANNEL_LOG_SIGMOID: return -scale * softplus(-r * u);
    case COMBA_CHANNEL_SIGMOID: return -scale * precise_sigmoid(r * u);
    default: return -scale * r * softplus(u);
    }
  }
  /* df/du */
  __device__ float slope(int64_t i) const {
    const int64_t c = i % channels;
    const float u = shifted(i, c), r = rate(c), s = precise_sigmoid(r * u);
    switch (kind) {
    case COMBA_CHANNEL_LOG_SIGMOID: return scale * r * precise_sigmoid(-r * u);
    case COMBA_CHANNEL_SIGMOID: return -scale * r * s * (1 - s);
    default: return -scale * r * precise_sigmoid(u);
    }
  }
};

template <class T> static gate<T> gate_of(const comba_call *call) {
  const comba_channel_decay_attributes *attributes = (const comba_channel_decay_attributes *)call->attributes;
  const int64_t *size = call->input[X].shape.size;
  return {attributes->kind,
          size[0] * size[1],
          size[2] * size[3],
          size[3],
          attributes->scale == 0 ? 1 : (float)attributes->scale,
          attributes->minimum == 0 ? FLOOR : (float)attributes->minimum,
          (const T *)call->input[X].data,
          (const float *)call->input[A_LOG].data,
          (const float *)call->input[DT_BIAS].data};
}

template <class T> static void forward(const comba_call *call) {
  const gate<T> p = gate_of<T>(call);
  float *g = (float *)call->output[0].data;
  comba_each(p.tokens * p.channels, [=] __device__(int64_t i) {
    const float value = p.value(i);
    g[i] = value < p.minimum ? p.minimum : value; /* a NaN passes, so that it shows */
  });
}

template <class T> static void backward(const comba_call *call) {
  const gate<T> p = gate_of<T>(call);
  const float *g = (const float *)call->output[0].data, *dg = (const float *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *da_log = (float *)call->input_gradient[A_LOG].data, *dbias = (float *)call->input_gradient[DT_BIAS].data;
  float *sums = (float *)call->workspace, *partial = sums + p.channels;
  const bool add_x = call->accumulate[X], add_a_log = call->accumulate[A_LOG];
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << A_LOG | 1u << DT_BIAS)) return;
  const auto live = [=] __device__(int64_t i) { return g[i] > p.minimum ? dg[i] : 0; };
  if (dx) comba_each(p.tokens * p.channels, [=] __device__(int64_t i) { put(dx + i, p.slope(i) * live(i), add_x); });
  if (dbias)
    cuda_sum_columns(
        p.tokens, p.channels,
        [=] __device__(int64_t token, int64_t c) {
          const int64_t i = token * p.channels + c;
          return p.slope(i) * live(i);
        },
        partial, call->accumulate[DT_BIAS], dbias);
  if (!da_log) return;
  cuda_sum_columns(
      p.tokens, p.channels,
      [=] __device__(int64_t token, int64_t c) {
        const int64_t i = token * p.channels + c;
        return (p.kind == COMBA_CHANNEL_SOFTPLUS ? g[i] : p.shifted(i, c) * p.slope(i)) * live(i);
      },
      partial, false, sums);
  comba_each(p.channels / p.K, [=] __device__(int64_t head) {
    float total = 0;
    for (int64_t c = head * p.K; c < (head + 1) * p.K; c++) total += sums[c];
    put(da_log + head, total, add_a_log);
  });
}

COMBA_CUDA_ROW(channel_decay, infer);
