/* ops/sequences.h for kernels: sequences inside the rows (B T) of an operand. */
#ifndef COMBA_OPS_CUDA_SEQUENCES_H
#define COMBA_OPS_CUDA_SEQUENCES_H

#include "core/cuda_kernel.h"

typedef struct cuda_sequences {
  const int32_t *cu_seqlens; /* NULL: every `length` rows are one */
  int64_t length, count;     /* T, N */
} cuda_sequences;

static inline cuda_sequences cuda_sequences_of(const comba_view *x, const comba_view *cu_seqlens) {
  cuda_sequences s = {(const int32_t *)cu_seqlens->data, x->shape.size[1],
                      cu_seqlens->data ? cu_seqlens->shape.size[0] - 1 : x->shape.size[0]};
  return s;
}

/* First row of sequence n; that of n = N is the number of rows. */
static inline __device__ int64_t sequence_start(const cuda_sequences &s, int64_t n) {
  return s.cu_seqlens ? s.cu_seqlens[n] : n * s.length;
}

/* The sequence that `row` belongs to: the last one that starts at or before it, so never an empty one. */
static inline __device__ int64_t sequence_at(const cuda_sequences &s, int64_t row) {
  if (!s.cu_seqlens) return row / s.length;
  int64_t low = 0, high = s.count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (s.cu_seqlens[middle] <= row)
      low = middle;
    else
      high = middle;
  }
  return low;
}

#endif
