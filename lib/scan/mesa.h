/* What the two forms of mesa's solver share: the systems of one chunk of at most 64 tokens of one sequence and head,
 *   (H_t + diag(lambda)) x_t = b_t,  H_t = e^{G_t} state + sum over j <= t of e^{G_t - G_j} beta_j k_j k_j^T
 * with G the inclusive sums of g inside the chunk. */
#ifndef COMBA_SCAN_MESA_H
#define COMBA_SCAN_MESA_H

#include "scan/scalar.h"

/* Rows of k, b and x are `stride` apart, gates and beta `gate_stride`. */
typedef struct mesa_systems {
  int64_t n, K, stride, gate_stride, steps;
  const real *k, *beta, *g, *lambda; /* lambda (K) */
  const real *state;                 /* (K,K), symmetric */
  const real *b;
  real *x;
} mesa_systems;

/* Conjugate gradients stop where the residual has fallen to this part of b: what the number type can tell apart. */
#ifdef COMBA_REAL_DOUBLE
#define MESA_TOLERANCE 1e-14
#else
#define MESA_TOLERANCE 1e-7f
#endif

/* Reals of scratch for each slot. */
int64_t COMBA_VARIANT(comba_mesa_chunk_scratch)(int64_t K);
int64_t COMBA_VARIANT(comba_mesa_recurrent_scratch)(int64_t K);
/* x from b: all tokens side by side by matrix products, or one after the other. */
void COMBA_VARIANT(comba_mesa_chunk_solve)(const mesa_systems *systems, real *scratch);
void COMBA_VARIANT(comba_mesa_recurrent_solve)(const mesa_systems *systems, real *scratch);

#endif
