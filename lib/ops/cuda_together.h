/* Several nodes of a small step in one launch (comba_backend.forward_together). */
#ifndef COMBA_OPS_CUDA_TOGETHER_H
#define COMBA_OPS_CUDA_TOGETHER_H

#include "core/cuda_kernel.h"

/* Each runs what it can from the first of `count` forwards on, and returns how many those were. */
template <class T> int cuda_linear_together(const comba_forward *forwards, int count); /* linear.cu */
template <class T> int cuda_tokens_together(const comba_forward *forwards, int count); /* cuda_together.cu */

#endif
