/* MetaLA: decay in place of keys. */
#ifndef COMBA_TESTS_META_LA_H
#define COMBA_TESTS_META_LA_H

#include "language_model.h"

/* Whether there is a convolution or a token sees itself follows from the weights. */
typedef struct oracle_meta_la_config {
  int64_t heads;
  double normalizer;
} oracle_meta_la_config;

extern const oracle_family oracle_meta_la;

#endif
