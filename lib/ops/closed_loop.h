/* Comba's closed loop in one row, a token and head: the factors by which its results are made of q and k, and its gradients of them and of
 * the results' gradients, from the row's inner products. closed_loop.c has the formulas. */
#ifndef COMBA_OPS_CLOSED_LOOP_H
#define COMBA_OPS_CLOSED_LOOP_H

#include "core/host_device.h"
#include "ops/ops.h"

/* What the rows of a head share */
typedef struct comba_loop {
  real b, m, f; /* sigmoid(s), D, and the factor of k in the feedback: b or 1 */
  real c;       /* of k in w = q - c k, which the norm of the query takes */
  real epsilon;
  bool after_norm, p_normalize, feedback_decay;
} comba_loop;

static inline COMBA_HOST_DEVICE comba_loop comba_loop_of(const comba_closed_loop_attributes *a, real b, real m) {
  const comba_loop loop = {b,
                           m,
                           a->feedback_decay ? b : 1,
                           a->after_norm ? 0 : m * b,
                           (real)a->epsilon,
                           a->after_norm,
                           a->p_normalize,
                           a->feedback_decay};
  return loop;
}

static inline COMBA_HOST_DEVICE real comba_loop_norm(const comba_loop *loop, real squares) {
  return 1 / comba_real_sqrt(squares + loop->epsilon);
}

/* q' = q_q q + q_k k,  k' = k_k k,  p' = p_k k, from kk = <k, k> and ww = <w, w> */
typedef struct comba_loop_forward {
  real q_q, q_k, k_k, p_k;
} comba_loop_forward;

static inline COMBA_HOST_DEVICE comba_loop_forward comba_loop_run(const comba_loop *loop, real kk, real ww) {
  const real k = comba_loop_norm(loop, kk), w = comba_loop_norm(loop, ww);
  const real x = loop->f * (loop->after_norm ? k : 1);
  const comba_loop_forward factors = {w, -loop->m * loop->b * (loop->after_norm ? k : w), k,
                                      loop->p_normalize ? x * comba_loop_norm(loop, x * x * kk) : loop->f * k};
  return factors;
}

/* Inner products of k, w and the gradients of the three results */
typedef struct comba_loop_products {
  real kk, ww, kw, k_dq, k_dk, k_dp, w_dq;
} comba_loop_products;

/* dq = q_dq dq' + q_w w,  dk = k_dq dq' + k_dk dk' + k_dp dp' + k_w w + k_k k, and what the row adds to db and dm */
typedef struct comba_loop_backward {
  real q_dq, q_w, k_dq, k_dk, k_dp, k_w, k_k, db, dm;
} comba_loop_backward;

static inline COMBA_HOST_DEVICE comba_loop_backward comba_loop_return(const comba_loop *loop,
                                                                      const comba_loop_products *of) {
  const real rk = comba_loop_norm(loop, of->kk), rw = comba_loop_norm(loop, of->ww);
  const real key = loop->after_norm ? rk : 1; /* key k is what the correction and the feedback read */
  comba_loop_backward to;
  to.q_dq = rw;
  to.q_w = -rw * rw * rw * of->w_dq;
  /* v = q - m b key k, the query before or after its norm, has the gradient v_dq dq' + v_w w. */
  const real v_dq = loop->after_norm ? 1 : to.q_dq, v_w = loop->after_norm ? 0 : to.q_w;
  const real k_dv = v_dq * of->k_dq + v_w * of->kw;
  to.dm = -loop->b * key * k_dv;
  to.db = -loop->m * key * k_dv;
  to.k_dq = -loop->m * loop->b * key * v_dq;
  to.k_w = -loop->m * loop->b * key * v_w;
  to.k_dk = rk;
  to.k_k = 0;
  real k_dkey = -loop->m * loop->b * k_dv, k_dunit = of->k_dk; /* <k, .> of the gradients of key k and of k' */
  if (loop->p_normalize) {
    const real x = loop->f * key, r = comba_loop_norm(loop, x * x * of->kk); /* p' = r x k */
    const real along = r * r * r * x * x * of->k_dp;
    const real k_dz =
        r * r * r * loop->epsilon * of->k_dp; /* r k_dp - along kk, nothing but what epsilon leaves of it */
    to.k_dp = x * r;
    to.k_k = -x * along;
    k_dkey += loop->f * k_dz;
    if (loop->feedback_decay) to.db += key * k_dz;
  } else {
    to.k_dp = rk * loop->f;
    k_dunit += loop->f * of->k_dp;
    if (loop->feedback_decay) to.db += rk * of->k_dp;
  }
  to.k_k -= rk * rk * rk * (k_dunit + (loop->after_norm ? k_dkey : 0));
  return to;
}

#endif
