/* What the kernels of both memories have alike: the operands of a call, the tasks, a block each, and the sums over tasks. */
#ifndef COMBA_SCAN_CUDA_MEMORY_OPERANDS_H
#define COMBA_SCAN_CUDA_MEMORY_OPERANDS_H

#include "scan/cuda_block.h"

enum { OUTPUT, FINAL_STATE };
enum { MEMORIES };

template <int INPUTS> struct memory_operands {
  int64_t sequences, length, heads, chunk; /* N; T, with cu_seqlens of all */
  const void *input[INPUTS];
  void *gradient[INPUTS], *o;
  const void *output_gradient;
  const float *final_state_gradient;
  float *final_state, *memories;
  bool accumulate[INPUTS];
  float *scratch, *parameter_gradients; /* (N H, scratch_size), (N H, parameters) */
  int64_t scratch_size;
  int64_t parameters; /* those of the memory, the norm and the token offsets, one after the other */
};

/* The pointers of a call; what follows from shapes is there already. */
template <int INPUTS> static void take_operands(const comba_call *call, memory_operands<INPUTS> *p) {
  for (int i = 0; i < INPUTS; i++) {
    p->input[i] = call->input[i].data;
    p->gradient[i] = call->input_gradient[i].data;
    p->accumulate[i] = call->accumulate[i];
  }
  p->o = call->output[OUTPUT].data;
  p->final_state = (float *)call->output[FINAL_STATE].data;
  p->memories = (float *)call->saved[MEMORIES].data;
  p->output_gradient = call->output_gradient[OUTPUT].data;
  p->final_state_gradient = (const float *)call->output_gradient[FINAL_STATE].data;
  p->scratch = (float *)call->workspace;
  p->parameter_gradients = p->scratch + p->sequences * p->heads * p->scratch_size;
}

/* One sequence and head: its tokens, and how far into a chunk the first is. */
struct memory_span {
  int64_t sequence, head, first, length, phase;
};

template <int INPUTS>
static __device__ memory_span span_of(const memory_operands<INPUTS> &p, int64_t task, int cu_seqlens_input,
                                      int position_input) {
  const int32_t *cu_seqlens = (const int32_t *)p.input[cu_seqlens_input];
  const int32_t *position = (const int32_t *)p.input[position_input];
  memory_span span;
  span.sequence = task / p.heads;
  span.head = task % p.heads;
  span.first = cu_seqlens ? cu_seqlens[span.sequence] : span.sequence * p.length;
  span.length = cu_seqlens ? cu_seqlens[span.sequence + 1] - span.first : p.length;
  span.phase = position ? *position % p.chunk : 0;
  return span;
}

/* Chunks that its tokens touch, and the first of its tokens that lies in chunk c. */
static __device__ int64_t chunk_count(const memory_span &span, int64_t chunk) {
  return span.length ? (span.phase + span.length + chunk - 1) / chunk : 0;
}
static __device__ int64_t chunk_start(const memory_span &span, int64_t chunk, int64_t c) {
  return c ? c * chunk - span.phase : 0;
}

/* Rows of `from` (n, from_width), the first `width` of each, to the gradient of an input at the span's tokens `start` on. */
template <class T, int INPUTS>
static __device__ void store_rows(const memory_operands<INPUTS> &p, const memory_span &span, int input, int64_t start,
                                  int64_t n, int64_t width, const float *from, int64_t from_width) {
  T *to = (T *)p.gradient[input];
  if (!to) return;
  to += ((span.first + start) * p.heads + span.head) * width;
  block_each(n * width, [&](int64_t i) {
    put(to + i / width * p.heads * width + i % width, from[i / width * from_width + i % width], p.accumulate[input]);
  });
}

/* The gradient of a parameter of n numbers a head, or of n that all heads share: the sums over its tasks, in order, of the numbers at
 * `offset` among those of each. */
template <int INPUTS>
static void sum_parameter(const memory_operands<INPUTS> &p, int input, int64_t offset, int64_t n, bool shared) {
  float *gradient = (float *)p.gradient[input];
  const float *of_tasks = p.parameter_gradients + offset;
  const int64_t stride = p.parameters, heads = p.heads, tasks = p.sequences * heads;
  const bool accumulate = p.accumulate[input];
  if (!gradient) return;
  comba_each(shared ? n : heads * n, [=] __device__(int64_t i) {
    float total = 0;
    for (int64_t task = shared ? 0 : i / n; task < tasks; task += shared ? 1 : heads)
      total += of_tasks[task * stride + i % n];
    put(gradient + i, total, accumulate);
  });
}

#endif
