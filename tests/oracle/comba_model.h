/* Comba, Gated DeltaNet and DeltaNet in double precision, written from the formulas. */
#ifndef COMBA_TESTS_COMBA_MODEL_H
#define COMBA_TESTS_COMBA_MODEL_H

#include "language_model.h"

typedef enum oracle_gate { ORACLE_GATE_SIGMOID, ORACLE_GATE_SWISH, ORACLE_GATE_NONE } oracle_gate;
/* ln alpha from u = a + dt_bias and A = e^A_log: -A softplus(u); ln sigmoid(u); -A softplus(dt_bias); 0 */
typedef enum oracle_decay {
  ORACLE_DECAY_MAMBA2,
  ORACLE_DECAY_SIGMOID,
  ORACLE_DECAY_CONSTANT,
  ORACLE_DECAY_ONE,
  ORACLE_DECAY_ABSENT /* 0, and the layer has no weights for it */
} oracle_decay;
typedef enum oracle_activation {
  ORACLE_ACTIVATION_SILU,
  ORACLE_ACTIVATION_RELU,
  ORACLE_ACTIVATION_ELU, /* elu(x) + 1 */
  ORACLE_ACTIVATION_IDENTITY
} oracle_activation;

/* Zero in the second half means what the released code does. */
typedef struct oracle_config {
  int64_t heads, value_heads, key_size, value_size;
  int64_t taps;      /* of the short convolution; 0: none */
  double beta_scale; /* 0: 1 */

  oracle_gate gate;
  oracle_decay decay;
  bool no_correction;           /* q instead of q - D p */
  bool no_inner_decay;          /* p = k instead of p = sigmoid(decay) k */
  bool no_feedback_decay;       /* the feedback reads k, the correction keeps p */
  bool feedback_not_unit;       /* the feedback is sigmoid(decay) times the normalised k */
  bool correction_after_norm;   /* norm(q) - D sigmoid(decay) norm(k) instead of norm(q - D p) */
  bool feedback_after_decay;    /* iplr: the error reads the decayed state */
  bool fixed_beta;              /* beta is beta_scale */
  bool sum_norm;                /* q and k are divided by their sum, not by their length */
  oracle_activation activation; /* of q and k */
} oracle_config;

extern const oracle_family oracle_comba;

#endif
