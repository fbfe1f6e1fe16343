/* y = a + b;  da = dy, db = dy */
#include "core/cuda_kernel.h"

enum { A, B };

template <class T> static void forward(const comba_call *call) {
  const T *a = (const T *)call->input[A].data, *b = (const T *)call->input[B].data;
  T *y = (T *)call->output[0].data;
  comba_each(comba_shape_elements(&call->output[0].shape),
             [=] __device__(int64_t i) { store(y + i, load(a + i) + load(b + i)); });
}

/* add(x, x) has one gradient for both: the first operand overwrites it, then the second adds. */
template <class T> static void backward(const comba_call *call) {
  const T *dy = (const T *)call->output_gradient[0].data;
  if (comba_cuda_gradient_absent<T>(call, 2, 0)) return;
  for (int operand = A; operand <= B; operand++) {
    T *gradient = (T *)call->input_gradient[operand].data;
    const bool accumulate = call->accumulate[operand];
    if (gradient)
      comba_each(comba_shape_elements(&call->output[0].shape),
                 [=] __device__(int64_t i) { put(gradient + i, load(dy + i), accumulate); });
  }
}

COMBA_CUDA_ROW(add);
