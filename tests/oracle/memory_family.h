/* Mixers whose state is a matrix that descends an inner loss while it reads: TTT-Linear, Titans, Yaad, Moneta, Memora. */
#ifndef COMBA_TESTS_MEMORY_FAMILY_H
#define COMBA_TESTS_MEMORY_FAMILY_H

#include "language_model.h"

typedef enum oracle_huber { ORACLE_HUBER_TOKEN, ORACLE_HUBER_CHANNEL, ORACLE_HUBER_SIGN } oracle_huber;
typedef enum oracle_softmax { ORACLE_SOFTMAX_MEMORY, ORACLE_SOFTMAX_COLUMN, ORACLE_SOFTMAX_ROW } oracle_softmax;

/* What the shapes of the weights do not tell. */
typedef struct oracle_memory_config {
  int64_t heads, chunk; /* tokens whose gradients are taken at one memory */
  double base_lr;
  /* Yaad */
  oracle_huber huber;
  double delta_scale;
  bool delta_sigmoid;
  /* Moneta */
  double p, q, sharpness, smoothing;
  bool mirror;
  /* Memora */
  oracle_softmax softmax;
  double total;
  /* two layers */
  bool raw_loss;
} oracle_memory_config;

extern const oracle_family oracle_ttt_linear, oracle_titans, oracle_yaad, oracle_moneta, oracle_memora,
    oracle_moneta_layers;

#endif
