/* TTT-MLP: two layers that learn at test time. */
#ifndef COMBA_TESTS_TTT_MLP_H
#define COMBA_TESTS_TTT_MLP_H

#include "language_model.h"

/* The mini-batch follows from the weights' shapes; so does whether there is a gate, or one projection for q and k. */
typedef struct oracle_ttt_mlp_config {
  int64_t heads;
  double base_lr, rope_theta;
} oracle_ttt_mlp_config;

extern const oracle_family oracle_ttt_mlp;

#endif
