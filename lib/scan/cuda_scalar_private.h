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

/* Of each token: e^{P_i}, what feedback reads of the state before the chunk; beta; e^{G_n - G_i}, what the chunk leaves of its writing;
 * and e^{G_i}. */
enum { READ, BETA, LEFT, DECAY, FACTORS };

/* With M = stril(e^{P_i - G_j} p_i k_j) and D = diag(beta), feedback within a chunk is e = (I + M D)^-1 r, r = v - e^P (p S). The
 * resolvent R = (I + M D)^-1 M gives it as e = r - C r, C = R D: nothing is rounded to T but the correction. */
typedef struct buffers {
  double *G;            /* (slots, CHUNK): inclusive sums of gates */
  float *factors;       /* (slots, FACTORS, CHUNK) */
  void *A, *correction; /* T (slots, CHUNK, CHUNK): tril(scale e^{G_i - G_j} q_i k_j); C */
  void *written;        /* T (slots, CHUNK, V): beta e */
  void *states;         /* T (slots, K, V): before each chunk */
  /* for backward, instead of A and `written` */
  float *beta;  /* (slots, CHUNK) */
  void *errors; /* T (slots, CHUNK, V): e */
} buffers;

/* The argument of every kernel. */
typedef struct pass {
  cuda_scalar c;
  shape s;
  buffers b;
  bool keys_aligned, values_aligned; /* rows of q, k and p, and of v and o, begin at multiples of 16 bytes */
} pass;

/* Lays everything out from `base` on; returns the number of floats. Activations get float's room whatever T is. What feedback
 * alone needs has no room without it. */
int64_t cuda_scalar_lay_out(buffers *b, const shape &s, float *base, bool backward, int64_t type_size);

/* What `buffers` has room for, and the final state. */
template <class T> void cuda_scalar_advance(const cuda_scalar *c, const shape &s, const buffers &b);
/* Floats of workspace. */
int64_t cuda_scalar_workspace(const cuda_scalar *c, bool backward);
/* The states before each chunk, and what is written to them. */
template <class T> void cuda_scalar_scan(const pass &p);
/* Token by token: the whole of forward, for sequences of a few tokens. */
template <class T> void cuda_scalar_decode(const cuda_scalar *c);
static inline bool is_decoded(const cuda_scalar *c) {
  return c->length <= 8;
}

static inline __device__ float decay(double x) {
  return x < -87 ? 0 : expf((float)x);
}
/* e^{P_i}: what feedback at token i reads is left of the state before the chunk */
static inline __device__ float feedback_decay(const double *G, int i, bool after_decay) {
  return after_decay ? decay(G[i]) : (i ? decay(G[i - 1]) : 1);
}

#endif
