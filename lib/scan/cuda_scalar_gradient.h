/* Backward of cuda_scalar.h, from what forward's chunks have left. S is the state before a chunk, dS' the gradient of the
 * state after it, e the errors, y the gradient of beta e; the rest as in delta_rule_chunk.c. Five kernels:
 *   prepare      a slot:  q k^T and p k^T, of which A and L are made; y0 = (A X)^T do and W = X^T e^{G_n - G} k, where
 *                X = (I + L2)^-1 and L2_ij = beta_i L_ij
 *   go_back      a lane and head, 64 columns of V: dS' stays in registers from the last chunk to the first
 *                y = y0 + W dS';  dS = e^{G_n} dS' + q^T (scale e^G do) - p^T (beta e^P y)
 *   find_score_gradients  a slot: of q k^T and p k^T, from do e^T and y e^T; the paths between its tokens; dbeta
 *   find_key_gradients    a slot, 64 columns of K: dq, dk, dp, and the paths that begin or end in a state
 *   find_gate_gradients   a slot: dg, the sum over the paths that pass a gate
 * Without delta y = A^T do + e^{G_n - G} k dS', v takes the place of e, and nothing is fed back.
 * Products round their operands to T and sum in float. What cancels is kept in float until it has: keys that repeat make A X and W small
 * differences of large sums, so A X is multiplied in float, and X for W is split into two bfloat16 each; and q k^T and p k^T go to
 * find_score_gradients without their decays, so that scores with equal keys are rounded alike and cancel in dg. */
#ifndef COMBA_SCAN_CUDA_SCALAR_GRADIENT_H
#define COMBA_SCAN_CUDA_SCALAR_GRADIENT_H

#include "scan/cuda_scalar_private.h"
#include "scan/cuda_tile.h"

enum { BLOCK = 64 };
enum { FROM_Q, FROM_P, TO_STATE, ENDS }; /* paths that begin or end in a state, by token */

template <class T> struct gradient_problem {
  shape s;
  int blocks;       /* of 64 columns of K */
  int keys, values; /* K and V in whole blocks: rows of what the kernels pass on */
  int q_group, k_group, v_group;
  int q_stride, k_stride, v_stride, output_stride; /* between tokens */
  float scale;
  bool after_decay, aligned;
  const double *G;      /* (slots, CHUNK) */
  const float *factors; /* (slots, FACTORS, CHUNK) */
  const T *q, *k, *p, *v, *output_gradient;
  const T *states, *errors;
  /* what the kernels pass on */
  T *qk, *pk;                /* (slots, CHUNK, CHUNK): q k^T, p k^T */
  T *W, *y;                  /* (slots, CHUNK, keys or values) */
  T *state_gradients;        /* (slots, keys, values): dS' */
  T *to_score, *to_feedback; /* (slots, CHUNK, CHUNK) */
  float *between;            /* (slots, CHUNK): over paths between tokens that pass a gate */
  float *ends, *across;      /* (slots, blocks, ENDS, CHUNK); (slots, blocks): from S to S' */
  /* results; of what several value heads share, (slots, CHUNK, width) of floats first */
  T *dq, *dk, *dp, *dv;
  float *shared_dq, *shared_dk, *shared_dp, *shared_dv;
  float *dbeta, *dg, *initial_gradient;
  const float *final_gradient;
  bool add_q, add_k, add_p, add_v, add_beta, add_g, add_state;

  __device__ const T *q_at(const cuda_piece &p, int head) const {
    return q + p.row * (int64_t)q_stride + head / q_group * s.K;
  }
  __device__ const T *k_at(const cuda_piece &p, int head) const {
    return k + p.row * (int64_t)k_stride + head / k_group * s.K;
  }
  __device__ const T *p_at(const cuda_piece &piece, int head) const {
    return p + piece.row * (int64_t)k_stride + head / k_group * s.K;
  }
  __device__ const T *output_gradient_at(const cuda_piece &p, int head) const {
    return output_gradient + (p.row * s.heads + head) * s.V;
  }
  /* Rows of the output's gradient: none where it is absent. */
  __device__ int output_rows(const cuda_piece &p) const {
    return output_gradient ? p.count : 0;
  }
  __device__ const float *beta_at(int64_t slot) const {
    return factors + (slot * FACTORS + BETA) * CHUNK;
  }
  /* The decay exponent P of feedback at token i. */
  __device__ double feedback_sum(const double *G, int i) const {
    return after_decay ? G[i] : (i ? G[i - 1] : 0);
  }
};

template <class T>
static void launch(void (*kernel)(gradient_problem<T>), const gradient_problem<T> &x, int64_t grid, int threads,
                   int bytes) {
  static const char *what = "the scan over chunks, backward";
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
  kernel<<<(unsigned)grid, (unsigned)threads, bytes, comba_cuda_stream()>>>(x);
  comba_cuda_note(cudaGetLastError(), what);
}

/* What follows go_back: dq, dk, dp, dbeta, dg. */
template <class T> void cuda_scalar_find_key_gradients(const gradient_problem<T> &x);
/* All of it where is_one_chunk and no gradient comes from the final state. */
template <class T> void cuda_scalar_backward_one_chunk(const gradient_problem<T> &x);

#endif
