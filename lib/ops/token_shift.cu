/* y[t] = x[t - 1], and the state (0 without one) at the first token of a sequence; new_state = the last x of each
 * dx[t] = dy[t + 1], that of new_state at the last token;  dstate = dy of the first token
 * An empty sequence hands its state on. */
#include "ops/cuda_sequences.h"

enum { X, STATE, CU_SEQLENS };
enum { Y, NEW_STATE };

template <class T> static void forward(const comba_call *call) {
  const int64_t d = call->input[X].shape.size[2];
  const cuda_sequences sequences = cuda_sequences_of(&call->input[X], &call->input[CU_SEQLENS]);
  const T *x = (const T *)call->input[X].data;
  const float *state = (const float *)call->input[STATE].data;
  T *y = (T *)call->output[Y].data;
  float *carried = (float *)call->output[NEW_STATE].data;
  comba_each(comba_shape_elements(&call->input[X].shape), [=] __device__(int64_t i) {
    const int64_t row = i / d, n = sequence_at(sequences, row);
    if (row > sequence_start(sequences, n))
      y[i] = x[i - d];
    else
      store(y + i, state ? state[n * d + i % d] : 0);
  });
  /* after y: the state may share memory with the new one */
  comba_each(sequences.count * d, [=] __device__(int64_t i) {
    const int64_t n = i / d, stop = sequence_start(sequences, n + 1);
    if (stop > sequence_start(sequences, n))
      carried[i] = load(x + (stop - 1) * d + i % d);
    else
      carried[i] = state ? state[i] : 0;
  });
}

template <class T> static void backward(const comba_call *call) {
  const int64_t d = call->input[X].shape.size[2];
  const cuda_sequences sequences = cuda_sequences_of(&call->input[X], &call->input[CU_SEQLENS]);
  const T *dy = (const T *)call->output_gradient[Y].data;
  const float *dnew = (const float *)call->output_gradient[NEW_STATE].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *dstate = (float *)call->input_gradient[STATE].data;
  const bool add_x = call->accumulate[X], add_state = call->accumulate[STATE];
  if (dx)
    comba_each(comba_shape_elements(&call->input[X].shape), [=] __device__(int64_t i) {
      const int64_t row = i / d, n = sequence_at(sequences, row);
      float gradient = 0;
      if (row + 1 < sequence_start(sequences, n + 1))
        gradient = dy ? load(dy + i + d) : 0;
      else if (dnew)
        gradient = dnew[n * d + i % d];
      put(dx + i, gradient, add_x);
    });
  if (dstate)
    comba_each(sequences.count * d, [=] __device__(int64_t i) {
      const int64_t n = i / d, start = sequence_start(sequences, n);
      float gradient = 0;
      if (sequence_start(sequences, n + 1) > start)
        gradient = dy ? load(dy + start * d + i % d) : 0;
      else if (dnew)
        gradient = dnew[i];
      put(dstate + i, gradient, add_state);
    });
}

COMBA_CUDA_ROW(token_shift);
