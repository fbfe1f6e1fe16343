/* What the two directions of the engine share (cuda_scalar.h): its shape, its workspace, and small functions of kernels. */
#ifndef COMBA_SCAN_CUDA_SCALAR_PRIVATE_H
#define COMBA_SCAN_CUDA_SCALAR_PRIVATE_H

#include "scan/cuda_chunks.h"
#include "scan/cuda_scalar.h"

struct shape : cuda_chunks {
  int64_t K, V;
  bool delta;
};

static inline shape shape_of(const cuda_scalar *c) {
  const int64_t sequences = c->cu_seqlens ? c->sequences : c->batch;
  return {cuda_chunks_of(c->length, sequences, c->heads, c->cu_seqlens, c->cu_seqlens), c->K, c->V, c->delta};
}

typedef struct buffers {
  double *G; /* (slots, CHUNK): inclusive sums of gates */
  float *beta;
  void *q, *k, *p, *v;     /* T (slots, CHUNK, K or V) */
  void *q_read, *p_read;   /* T: q times scale e^G, p times e^P */
  float *score, *feedback; /* (slots, CHUNK, CHUNK): q k^T, p k^T */
  void *A, *inverse;       /* T: masked scores with decay, (I + L)^-1 */
  void *W;                 /* T (slots, CHUNK, K) */
  float *errors;           /* (slots, CHUNK, V) */
  void *written, *carried; /* T: beta e; beta e^{G_n - G} e */
  void *states;            /* T (slots, K, V): before each chunk */
  float *state;            /* (lanes, heads, K, V) */
  float *output;           /* (slots, CHUNK, V) */
} buffers;

/* Lays everything out from `base` on; returns the number of floats. Activations get float's room whatever T is. What feedback
 * alone needs has no room without it. */
int64_t cuda_scalar_lay_out(buffers *b, const shape &s, float *base, bool backward, int64_t type_size);

/* Everything of forward but its output: masks, errors, states before each chunk, the final state. */
template <class T> void cuda_scalar_advance(const cuda_scalar *c, const shape &s, const buffers &b, T *inverse2);

/* The product of cuda_chunks.h, on operands that the workspace holds as T; c is T or float. */
template <class T>
static void multiply(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float scale, const void *a,
                     const void *b, bool accumulate, void *c, bool float_c, int64_t batch) {
  if (float_c)
    multiply(transpose_a, transpose_b, m, n, k, scale, (const T *)a, (const T *)b, accumulate, (float *)c, batch);
  else
    multiply(transpose_a, transpose_b, m, n, k, scale, (const T *)a, (const T *)b, accumulate, (T *)c, batch);
}

static inline __device__ float decay(double x) {
  return x < -87 ? 0 : expf((float)x);
}
/* e^{P_i}: what feedback at token i reads is left of the state before the chunk */
static inline __device__ float feedback_decay(const double *G, int i, bool after_decay) {
  return after_decay ? decay(G[i]) : (i ? decay(G[i - 1]) : 1);
}

/* to (slots, CHUNK, width) = from (B T, heads, width), times factor(slot, i) */
template <class T, class F>
static void pack(const shape &s, const void *from_, int64_t heads, int64_t width, void *to_, F factor) {
  const T *from = (const T *)from_;
  T *to = (T *)to_;
  const int64_t group = s.heads / heads;
  comba_each(s.slots * CHUNK * width, [=] __device__(int64_t x) {
    const int64_t column = x % width, i = x / width % CHUNK, slot = x / width / CHUNK;
    int64_t head;
    const cuda_piece p = piece_of_slot(s, slot, &head);
    const bool there = i < p.count && from;
    store(to + x,
          there ? load(from + ((p.row + i) * heads + head / group) * width + column) * factor(slot, (int)i) : 0);
  });
}

#endif
