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
  /* what backward reads too */
  double *G;      /* (slots, CHUNK): inclusive sums of gates */
  float *factors; /* (slots, FACTORS, CHUNK) */
  void *states;   /* T (slots, K, V): before each chunk */
  void *errors;   /* T (slots, CHUNK, V): e; NULL without delta, where it is v */
  /* of forward alone */
  void *correction; /* T (slots, CHUNK, CHUNK): C; NULL without delta */
  void *
      A; /* T (slots, CHUNK, CHUNK): tril(scale e^{G_i - G_j} q_i k_j beta_j); NULL where nothing asks for the output */
} buffers;

/* The argument of every kernel. */
typedef struct pass {
  cuda_scalar c;
  shape s;
  buffers b;
  bool keys_aligned, values_aligned; /* rows of q, k and p, and of v and o, begin at multiples of 16 bytes */
} pass;

/* Lay out what backward reads too, and the rest, from `base` on; return the number of floats. */
int64_t cuda_scalar_lay_out_kept(buffers *b, const shape &s, float *base, int64_t type_size);
int64_t cuda_scalar_lay_out_rest(buffers *b, const shape &s, float *base, bool output, int64_t type_size);

/* What `buffers` has room for, and the final state. */
template <class T> void cuda_scalar_advance(const cuda_scalar *c, const shape &s, const buffers &b);
/* Floats of workspace that backward needs besides `buffers`. */
int64_t cuda_scalar_gradient_workspace(const cuda_scalar *c, int64_t type_size);
/* Bytes of shared memory a block of the kernel that has most, forward or backward. */
int64_t cuda_scalar_shared(int64_t K, int64_t type_size);
/* The states before each chunk, and the errors. */
template <class T> void cuda_scalar_scan(const pass &p);
/* Token by token: the whole of forward, for sequences of a few tokens. */
template <class T> void cuda_scalar_decode(const cuda_scalar *c);
static inline bool is_decoded(const cuda_scalar *c) {
  return c->length <= 8;
}
/* Sequences of one chunk each that neither begin from a state nor share heads, in tiles of 64 channels: a kernel a pass. Forward keeps no
 * states; where there is a gradient of the final state, backward goes the long way. */
template <class T> void cuda_scalar_forward_one_chunk(const pass &p, bool keeps);
static inline bool is_one_chunk(const cuda_scalar *c) {
  return c->delta && c->length <= CHUNK && !is_decoded(c) && c->K <= CHUNK && c->V <= CHUNK && !c->initial_state &&
         !c->cu_seqlens && c->q_heads == c->heads && c->k_heads == c->heads && c->v_heads == c->heads;
}

static inline __device__ float decay(double x) {
  return x < -87 ? 0 : expf((float)x);
}
/* e^{P_i}: what feedback at token i reads is left of the state before the chunk */
static inline __device__ float feedback_decay(const double *G, int i, bool after_decay) {
  return after_decay ? decay(G[i]) : (i ? decay(G[i - 1]) : 1);
}

#endif
