/* Pairs of channels turned by an angle of their position, as rotary.c says; the gradient is turned back.
 *
 * Angles are double: float32 loses 1e-3 at position 1e4. They cost one sine and cosine a token and pair, shared by the heads. */
#include "core/cuda_packet.h"
#include "ops/cuda_sequences.h"

enum { X, POSITION, CU_SEQLENS };

static comba_status infer(comba_signature *s) {
  s->forward_workspace = s->backward_workspace = s->input[X].size[1] * s->input[X].size[3];
  return COMBA_OK;
}

/* Pair j of a row is channels `stride` j and `apart` further; a thread turns N neighbouring pairs. Index: what counts the threads; division
 * by int64_t takes longer than all else here. */
template <int N, class Index, class T>
static void turn(const T *x, const float *table, Index rows, Index length, Index heads, Index half, int64_t apart,
                 int stride, float direction, bool accumulate, T *y) {
  const Index packets = half / N;
  comba_each((int64_t)rows * packets, [=] __device__(int64_t i) {
    const Index row = (Index)i / packets, j = ((Index)i - row * packets) * N, t = row / heads % length;
    const int64_t a = (int64_t)row * 2 * half + stride * j, b = a + apart;
    const float *angle = table + (int64_t)t * 2 * half + j;
    const packet<T, N> first = load_packet<N>(x + a), second = load_packet<N>(x + b);
    const packet<float, N> cosine = load_packet<N>(angle), sine = load_packet<N>(angle + half);
    float to_first[N], to_second[N];
#pragma unroll
    for (int k = 0; k < N; k++) {
      to_first[k] = first[k] * cosine[k] - second[k] * direction * sine[k];
      to_second[k] = second[k] * cosine[k] + first[k] * direction * sine[k];
    }
    put_packet<N>(y + a, to_first, accumulate);
    put_packet<N>(y + b, to_second, accumulate);
  });
}

template <class T> static void rotate(const comba_call *call, const T *x, float direction, bool accumulate, T *y) {
  const comba_rotary_attributes *attributes = (const comba_rotary_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t length = shape->size[1], heads = shape->size[2], d = shape->size[3], half = d / 2;
  const int64_t period = attributes->period;
  const bool interleaved = attributes->interleaved;
  /* base^(-2 j / d) = 2^(step j) */
  const double step = -2 * log2(attributes->base == 0 ? 10000 : attributes->base) / (double)d;
  const int32_t *position = (const int32_t *)call->input[POSITION].data;
  const cuda_sequences sequences = cuda_sequences_of(&call->input[X], &call->input[CU_SEQLENS]);
  float *table = (float *)call->workspace; /* (T, 2, D/2): cosines, sines */
  comba_each(length * half, [=] __device__(int64_t i) {
    const int64_t t = i / half, j = i % half;
    int64_t n = t - (sequences.cu_seqlens ? sequence_start(sequences, sequence_at(sequences, t)) : 0);
    if (position) n += *position;
    if (period) n %= period;
    double sine, cosine;
    sincos((double)n * exp2(step * (double)j), &sine, &cosine);
    table[t * d + j] = (float)cosine;
    table[t * d + half + j] = (float)sine;
  });
  const int64_t rows = comba_shape_elements(shape) / d;
  const bool packs = half % 8 == 0 && comba_cuda_aligned(x, 16) && comba_cuda_aligned(y, 16);
  const auto turn_by = [&](auto index) {
    typedef decltype(index) I;
    if (packs && !interleaved)
      turn<8, I>(x, table, rows, length, heads, half, half, 1, direction, accumulate, y);
    else
      turn<1, I>(x, table, rows, length, heads, half, interleaved ? 1 : half, interleaved ? 2 : 1, direction,
                 accumulate, y);
  };
  if (rows * half < UINT32_MAX - COMBA_CUDA_BLOCK)
    turn_by(0u);
  else
    turn_by((int64_t)0);
}

template <class T> static void forward(const comba_call *call) {
  rotate(call, (const T *)call->input[X].data, 1, false, (T *)call->output[0].data);
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  rotate(call, (const T *)call->output_gradient[0].data, -1, call->accumulate[X], (T *)call->input_gradient[X].data);
}

COMBA_CUDA_ROW(rotary, infer);
