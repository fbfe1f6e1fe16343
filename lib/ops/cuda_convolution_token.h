/* short_convolution.cu for one token of each sequence, as in decoding: no walk, and the new state from registers. */
#ifndef COMBA_OPS_CUDA_CONVOLUTION_TOKEN_H
#define COMBA_OPS_CUDA_CONVOLUTION_TOKEN_H

#include "core/cuda_kernel.h"

enum { CONVOLUTION_TOKEN_TAPS = 4 };

template <class T> struct convolution_token {
  int64_t channels;
  int width; /* at most CONVOLUTION_TOKEN_TAPS */
  bool silu;
  const T *x;
  const float *weight, *bias, *state;
  T *y;
  float
      *new_state; /* may be the memory of `state`: a thread reads what it overwrites first, and no other thread does */

  __device__ void pass(int64_t sequence, int64_t c) const {
    const int carried = width - 1;
    const int64_t kept = sequence * carried * channels + c;
    float input[CONVOLUTION_TOKEN_TAPS], u = bias ? bias[c] : 0; /* oldest first */
#pragma unroll
    for (int j = 0; j < CONVOLUTION_TOKEN_TAPS; j++)
      input[j] = j < carried ? (state ? state[kept + j * channels] : 0)
                             : (j == carried ? load(x + sequence * channels + c) : 0);
#pragma unroll
    for (int j = 0; j < CONVOLUTION_TOKEN_TAPS; j++)
      if (j < width) u += weight[c * width + j] * input[j];
    store(y + sequence * channels + c, silu ? u * sigmoid(u) : u);
#pragma unroll
    for (int j = 1; j < CONVOLUTION_TOKEN_TAPS; j++)
      if (j < width) new_state[kept + (j - 1) * channels] = input[j];
  }
};

#endif
