/* Many nodes of a small step in one launch (comba_backend.forward_together): a program of stages, which the blocks of one kernel go through,
 * waiting for one another in between. */
#ifndef COMBA_OPS_CUDA_TOGETHER_H
#define COMBA_OPS_CUDA_TOGETHER_H

#include "core/cuda_kernel.h"

/* Forward of a linear operator alone, where its input has few rows; false: it has not. */
template <class T> bool cuda_multiply_few_rows(const comba_call *call);

#endif
