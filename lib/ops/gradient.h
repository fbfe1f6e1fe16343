/* What many backward passes do in the same way. */
#ifndef COMBA_OPS_GRADIENT_H
#define COMBA_OPS_GRADIENT_H

#include "core/op.h"
#include "core/parallel.h"

/* Without a gradient of output 0, those of the inputs are zero: writes them where they are wanted and returns true. */
static inline bool comba_gradient_absent(const comba_call *call, int inputs) {
  if (call->output_gradient[0].data) return false;
  for (int i = 0; i < inputs; i++) {
    const comba_view *gradient = &call->input_gradient[i];
    if (gradient->data && !call->accumulate[i])
      memset(gradient->data, 0, (size_t)comba_shape_elements(&gradient->shape) * sizeof(real));
  }
  return true;
}

/* sums (n) = or += column sums of y (rows, n), over blocks of rows in order; `partial` holds COMBA_BLOCKS * n reals. */
static inline void comba_gradient_columns(const real *y, int64_t rows, int64_t n, bool accumulate, real *partial,
                                          real *sums) {
  const int64_t blocks = comba_blocks(rows, 64);
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; block++) {
    real *sum = partial + block * n;
    const int64_t end = comba_block_start(rows, blocks, block + 1);
    memset(sum, 0, (size_t)n * sizeof(real));
    for (int64_t row = comba_block_start(rows, blocks, block); row < end; row++)
      for (int64_t j = 0; j < n; j++) sum[j] += y[row * n + j];
  }
  if (!accumulate) memset(sums, 0, (size_t)n * sizeof(real));
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t j = 0; j < n; j++) sums[j] += partial[block * n + j];
}

#endif
