/* u[t] = bias + sum_j weight[j] x[t - (W-1) + j],  y = f(u), f silu or identity, for each channel; gradients as short_convolution.c
 * has them. A thread a row and channel; times before the first token of a sequence read the state. */
#include "ops/cuda_sequences.h"

enum { X, WEIGHT, BIAS, STATE, CU_SEQLENS };
enum { Y, NEW_STATE };
enum { PART = 64 }; /* rows that one thread adds up for the gradients of taps and bias */

static comba_status infer(comba_signature *s) {
  const int64_t rows = s->input[X].size[0] * s->input[X].size[1], channels = s->input[X].size[2];
  s->forward_workspace = comba_shape_elements(&s->output[NEW_STATE]); /* the state may share memory with the new one */
  s->backward_workspace = rows * channels + ((rows + PART - 1) / PART + 1) * (s->input[WEIGHT].size[2] + 1) * channels;
  return COMBA_OK;
}

template <class T> struct problem {
  int64_t rows, channels, width; /* B T, C, W */
  cuda_sequences sequences;
  bool silu;
  const T *x;
  const float *weight, *bias, *state;

  /* What sequence n, whose rows begin at `start`, has as its input `row`, row >= start - (W-1) */
  __device__ float source(int64_t n, int64_t start, int64_t row, int64_t c) const {
    if (row >= start) return load(x + row * channels + c);
    return state ? state[((n + 1) * (width - 1) + row - start) * channels + c] : 0;
  }
  __device__ float preactivation(int64_t n, int64_t start, int64_t row, int64_t c) const {
    float u = bias ? bias[c] : 0;
    for (int64_t j = 0; j < width; j++) u += weight[c * width + j] * source(n, start, row - (width - 1) + j, c);
    return u;
  }
};

template <class T> static problem<T> problem_of(const comba_call *call) {
  const comba_shape *x = &call->input[X].shape;
  problem<T> p = {x->size[0] * x->size[1],
                  x->size[2],
                  call->input[WEIGHT].shape.size[2],
                  cuda_sequences_of(&call->input[X], &call->input[CU_SEQLENS]),
                  ((const comba_short_convolution_attributes *)call->attributes)->silu,
                  (const T *)call->input[X].data,
                  (const float *)call->input[WEIGHT].data,
                  (const float *)call->input[BIAS].data,
                  (const float *)call->input[STATE].data};
  return p;
}

template <class T> static void forward(const comba_call *call) {
  const problem<T> p = problem_of<T>(call);
  T *y = (T *)call->output[Y].data;
  float *new_state = (float *)call->output[NEW_STATE].data, *scratch = (float *)call->workspace;
  comba_each(p.rows * p.channels, [=] __device__(int64_t i) {
    const int64_t row = i / p.channels, n = sequence_at(p.sequences, row);
    const float u = p.preactivation(n, sequence_start(p.sequences, n), row, i % p.channels);
    store(y + i, p.silu ? u * sigmoid(u) : u);
  });
  const int64_t carried = p.width - 1, states = p.sequences.count * carried * p.channels;
  comba_each(states, [=] __device__(int64_t i) {
    const int64_t c = i % p.channels, k = i / p.channels % carried, n = i / p.channels / carried;
    scratch[i] = p.source(n, sequence_start(p.sequences, n), sequence_start(p.sequences, n + 1) - carried + k, c);
  });
  comba_each(states, [=] __device__(int64_t i) { new_state[i] = scratch[i]; });
}

template <class T> static void backward(const comba_call *call) {
  const problem<T> p = problem_of<T>(call);
  const int64_t carried = p.width - 1, parts = (p.rows + PART - 1) / PART, size = (p.width + 1) * p.channels;
  const T *dy = (const T *)call->output_gradient[Y].data;
  const float *dnew = (const float *)call->output_gradient[NEW_STATE].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *dbias = (float *)call->input_gradient[BIAS].data;
  float *dstate = (float *)call->input_gradient[STATE].data;
  float *du = (float *)call->workspace, *partial = du + p.rows * p.channels; /* (rows, C); (parts, W+1, C) */
  comba_each(p.rows * p.channels, [=] __device__(int64_t i) {
    const int64_t row = i / p.channels, n = sequence_at(p.sequences, row);
    float gradient = dy ? load(dy + i) : 0;
    if (p.silu && dy) {
      const float u = p.preactivation(n, sequence_start(p.sequences, n), row, i % p.channels), s = sigmoid(u);
      gradient *= s + u * s * (1 - s);
    }
    du[i] = gradient;
  });
  /* the gradient of input `row` of sequence n: from the rows that read it, and from the new state if it was kept there */
  const auto input_gradient = [=] __device__(int64_t n, int64_t row, int64_t c) {
    const int64_t start = sequence_start(p.sequences, n), stop = sequence_start(p.sequences, n + 1);
    float sum = dnew && row >= stop - carried ? dnew[((n + 1) * carried + row - stop) * p.channels + c] : 0;
    for (int64_t reader = max(row, start); reader <= row + carried && reader < stop; reader++)
      sum += p.weight[c * p.width + carried + row - reader] * du[reader * p.channels + c];
    return sum;
  };
  if (dx) {
    const bool accumulate = call->accumulate[X];
    comba_each(p.rows * p.channels, [=] __device__(int64_t i) {
      const int64_t row = i / p.channels;
      put(dx + i, input_gradient(sequence_at(p.sequences, row), row, i % p.channels), accumulate);
    });
  }
  if (dstate) {
    const bool accumulate = call->accumulate[STATE];
    comba_each(p.sequences.count * carried * p.channels, [=] __device__(int64_t i) {
      const int64_t c = i % p.channels, k = i / p.channels % carried, n = i / p.channels / carried;
      put(dstate + i, input_gradient(n, sequence_start(p.sequences, n) - carried + k, c), accumulate);
    });
  }
  if (!dweight && !dbias) return;
  comba_each(parts * size, [=] __device__(int64_t i) {
    const int64_t c = i % p.channels, j = i / p.channels % (p.width + 1), part = i / size;
    const int64_t end = min(p.rows, (part + 1) * PART);
    float sum = 0;
    for (int64_t row = part * PART; row < end; row++) {
      const int64_t n = sequence_at(p.sequences, row);
      const float input = j == p.width ? 1 : p.source(n, sequence_start(p.sequences, n), row - carried + j, c);
      sum += du[row * p.channels + c] * input;
    }
    partial[i] = sum;
  });
  const bool add_weight = call->accumulate[WEIGHT], add_bias = call->accumulate[BIAS];
  float *sums = partial + parts * size; /* (W+1, C) */
  comba_cuda_sum_rows(partial, parts, size, false, sums);
  comba_each(size, [=] __device__(int64_t i) {
    const int64_t c = i % p.channels, j = i / p.channels;
    if (j < p.width && dweight) put(dweight + c * p.width + j, sums[i], add_weight);
    if (j == p.width && dbias) put(dbias + c, sums[i], add_bias);
  });
}

COMBA_CUDA_ROW(short_convolution, infer);
