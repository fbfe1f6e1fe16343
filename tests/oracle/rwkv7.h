/* RWKV-7 with its block, written from the formulas of docs/mixers/rwkv7.md. */
#ifndef COMBA_TESTS_RWKV7_H
#define COMBA_TESTS_RWKV7_H

#include "language_model.h"

typedef struct oracle_rwkv7_config {
  double key_epsilon;           /* under the root of a key's length */
  double (*activation)(double); /* of the channel mix */
} oracle_rwkv7_config;

extern const oracle_family oracle_rwkv7;

double oracle_squared_relu(double x);

#endif
