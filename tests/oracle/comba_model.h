/* Language models of Comba, Gated DeltaNet and DeltaNet in double precision, token by token with plain loops: written from the formulas, sharing nothing
 * with the library but the names of the weights. */
#ifndef COMBA_TESTS_COMBA_MODEL_H
#define COMBA_TESTS_COMBA_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "comba.h"

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
  int64_t vocabulary, hidden, layers, heads, value_heads, key_size, value_size;
  int64_t taps; /* of the short convolution; 0: none */
  int64_t mlp;  /* width; 0: blocks of a norm and a mixer alone */
  double norm_epsilon, beta_scale;

  oracle_gate gate;
  oracle_decay decay;
  bool tied;
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

typedef struct oracle_model oracle_model;

/* Copies the weights of `model`. A weight that the formulas name and the model lacks ends the process. */
oracle_model *oracle_model_create(const oracle_config *config, const comba_model *model);
void oracle_model_free(oracle_model *oracle);
/* The weight of that name, to be read and changed. */
double *oracle_model_weight(oracle_model *oracle, const char *name);

/* logits (B,T,V) from ids (B,T); `loss` (or NULL) is the mean cross entropy of ids[t + 1] given those up to t. */
void oracle_model_forward(oracle_model *oracle, const int32_t *ids, int64_t batch, int64_t length, double *logits,
                          double *loss);

#endif
