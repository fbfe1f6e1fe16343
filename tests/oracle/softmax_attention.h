/* Softmax attention of one head in double precision: written from the formula, sharing nothing with the library. */
#ifndef COMBA_TESTS_SOFTMAX_ATTENTION_H
#define COMBA_TESTS_SOFTMAX_ATTENTION_H

#include <stdbool.h>
#include <stdint.h>

/* q (T,D), o (T,D), rows query_stride apart; k, v (S,D), rows key_stride apart. Query t sits at position `first` + t and,
 * if causal, sees keys up to that position, the last `window` of them if window > 0. */
typedef struct softmax_attention {
  int64_t T, S, D, first, window;
  bool causal;
  double scale;
  const double *q, *k, *v;
  int64_t query_stride, key_stride;
  double *o;
} softmax_attention;

void softmax_attention_run(const softmax_attention *a);

/* Gradients from that of the output; dq, dk and dv, laid out as q, k and v, are added to. */
void softmax_attention_gradient(const softmax_attention *a, const double *output_gradient, double *dq, double *dk,
                                double *dv);

#endif
