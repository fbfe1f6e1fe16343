/* Mamba2 (arXiv 2405.21060), in blocks of a norm and a mixer under the names of the released models. */
#ifndef COMBA_TESTS_MAMBA2_H
#define COMBA_TESTS_MAMBA2_H

#include "language_model.h"

typedef struct oracle_mamba2_config {
  int64_t groups, state_size, head_dim;
  double least, largest; /* time step; largest 0: infinity */
  bool no_norm, norm_before_gate;
} oracle_mamba2_config;

extern const oracle_family oracle_mamba2;

#endif
