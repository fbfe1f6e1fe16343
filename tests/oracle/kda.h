/* Kimi Delta Attention, written from the formulas of docs/mixers/kda.md. */
#ifndef COMBA_TESTS_KDA_H
#define COMBA_TESTS_KDA_H

#include "language_model.h"

typedef struct oracle_kda_config {
  int64_t key_heads;
  double lower_bound; /* 0: none */
  double beta_scale;  /* 0: 1 */
} oracle_kda_config;

extern const oracle_family oracle_kda;

#endif
