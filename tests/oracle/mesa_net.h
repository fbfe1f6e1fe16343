/* MesaNet, its systems solved by elimination. */
#ifndef COMBA_TESTS_MESA_NET_H
#define COMBA_TESTS_MESA_NET_H

#include "language_model.h"

/* Whether there is an output gate follows from the weights. */
typedef struct oracle_mesa_config {
  int64_t heads;
  double lower_bound;
} oracle_mesa_config;

extern const oracle_family oracle_mesa_net;

#endif
