/* Pairs of channels turned by an angle of their position, as rotary.c says; the gradient is turned back.
 *
 * Angles are double: float32 loses 1e-3 at position 1e4. They cost one sine and cosine a token and pair, shared by the heads. */
#include "ops/cuda_sequences.h"

enum { X, POSITION, CU_SEQLENS };

static comba_status infer(comba_signature *s) {
  s->forward_workspace = s->backward_workspace = s->input[X].size[1] * s->input[X].size[3];
  return COMBA_OK;
}

template <class T> static void rotate(const comba_call *call, const T *x, float direction, bool accumulate, T *y) {
  const comba_rotary_attributes *attributes = (const comba_rotary_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t length = shape->size[1], heads = shape->size[2], d = shape->size[3], half = d / 2;
  const int64_t period = attributes->period;
  const bool interleaved = attributes->interleaved;
  const double base = attributes->base == 0 ? 10000 : attributes->base;
  const int32_t *position = (const int32_t *)call->input[POSITION].data;
  const cuda_sequences sequences = cuda_sequences_of(&call->input[X], &call->input[CU_SEQLENS]);
  float *table = (float *)call->workspace; /* (T, 2, D/2): cosines, sines */
  comba_each(length * half, [=] __device__(int64_t i) {
    const int64_t t = i / half, j = i % half;
    int64_t n = t - (sequences.cu_seqlens ? sequence_start(sequences, sequence_at(sequences, t)) : 0);
    if (position) n += *position;
    if (period) n %= period;
    double sine, cosine;
    sincos((double)n * pow(base, -2 * (double)j / (double)d), &sine, &cosine);
    table[t * d + j] = (float)cosine;
    table[t * d + half + j] = (float)sine;
  });
  comba_each(comba_shape_elements(shape) / 2, [=] __device__(int64_t i) {
    const int64_t j = i % half, row = i / half, t = row / heads % length;
    const int64_t a = row * d + (interleaved ? 2 * j : j), b = a + (interleaved ? 1 : half);
    const float cosine = table[t * d + j], sine = direction * table[t * d + half + j];
    const float first = load(x + a), second = load(x + b);
    put(y + a, first * cosine - second * sine, accumulate);
    put(y + b, second * cosine + first * sine, accumulate);
  });
}

template <class T> static void forward(const comba_call *call) {
  rotate(call, (const T *)call->input[X].data, 1, false, (T *)call->output[0].data);
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  rotate(call, (const T *)call->output_gradient[0].data, -1, call->accumulate[X], (T *)call->input_gradient[X].data);
}

COMBA_CUDA_ROW(rotary, infer);
