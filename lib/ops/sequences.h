/* Sequences inside the rows (B T) of an operand: one a batch entry, or packed ones at the offsets of cu_seqlens (N+1). */
#ifndef COMBA_OPS_SEQUENCES_H
#define COMBA_OPS_SEQUENCES_H

#include "core/op.h"

/* N of an operand (batch, T, ...) whose optional input number `input` is cu_seqlens. */
static inline comba_status comba_infer_sequences(const comba_signature *signature, int input, int64_t batch,
                                                 int64_t *sequences) {
  const comba_shape *cu_seqlens = &signature->input[input];
  *sequences = batch;
  if (!cu_seqlens->rank) return COMBA_OK;
  if (batch != 1 || cu_seqlens->rank != 1 || cu_seqlens->size[0] < 2)
    return comba_fail_shape(signature, input, "(N + 1) with N >= 1, and one batch entry only");
  *sequences = cu_seqlens->size[0] - 1;
  return COMBA_OK;
}

typedef struct comba_sequences {
  const int32_t *cu_seqlens; /* NULL: every `length` rows are one */
  int64_t length, count;     /* T, N */
} comba_sequences;

static inline comba_sequences comba_sequences_of(const comba_view *x, const comba_view *cu_seqlens) {
  return (comba_sequences){cu_seqlens->data, x->shape.size[1],
                           cu_seqlens->data ? cu_seqlens->shape.size[0] - 1 : x->shape.size[0]};
}

/* First row of sequence n; that of n = N is the number of rows. */
static inline int64_t comba_sequence_start(const comba_sequences *s, int64_t n) {
  return s->cu_seqlens ? s->cu_seqlens[n] : n * s->length;
}

/* The sequence that `row` belongs to: the last one that starts at or before it, so never an empty one. */
static inline int64_t comba_sequence_at(const comba_sequences *s, int64_t row) {
  if (!s->cu_seqlens) return row / s->length;
  int64_t low = 0, high = s->count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (s->cu_seqlens[middle] <= row)
      low = middle;
    else
      high = middle;
  }
  return low;
}

#endif
