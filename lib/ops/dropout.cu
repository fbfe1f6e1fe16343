/* y_i = x_i / (1 - rate) where draw_i >= rate, else 0;  dx_i = dy_i / (1 - rate) there: the same draws, made again. A thread makes
 * one Philox draw, four elements. */
#include "core/cuda_kernel.h"
#include "core/random.h"

enum { X };
enum { WORDS = 4 };

template <class T> static void mask(const comba_call *call, const T *x, bool accumulate, T *y) {
  const comba_dropout_attributes *a = (const comba_dropout_attributes *)call->attributes;
  const int64_t n = comba_shape_elements(&call->input[X].shape);
  const uint64_t stream = a->stream;
  const uint32_t least = comba_random_threshold(a->rate);
  const float scale = (float)(1 / (1 - a->rate));
  const comba_run *run = call->run;
  comba_each((n + WORDS - 1) / WORDS, [=] __device__(int64_t draw) {
    const comba_random4 words = comba_random_bits(run->seed, stream + (run->step << 32), (uint64_t)draw);
    for (int word = 0; word < WORDS; word++) {
      const int64_t i = WORDS * draw + word;
      if (i < n) put(y + i, words.value[word] >= least ? scale * load(x + i) : 0, accumulate);
    }
  });
}

template <class T> static void forward(const comba_call *call) {
  mask(call, (const T *)call->input[X].data, false, (T *)call->output[0].data);
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  mask(call, (const T *)call->output_gradient[0].data, call->accumulate[X], (T *)call->input_gradient[X].data);
}

COMBA_CUDA_ROW(dropout);
