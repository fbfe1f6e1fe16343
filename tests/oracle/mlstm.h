/* xLSTM's matrix memory. */
#ifndef COMBA_TESTS_MLSTM_H
#define COMBA_TESTS_MLSTM_H

#include "language_model.h"

typedef struct oracle_mlstm_config {
  int64_t heads;
  double cap; /* 0: none */
  double epsilon;
  bool exponential_forget;
} oracle_mlstm_config;

extern const oracle_family oracle_mlstm;

#endif
