/* Mixers whose state decays by itself, S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T: GLA, HGRN2, RetNet. */
#ifndef COMBA_TESTS_LINEAR_FAMILY_H
#define COMBA_TESTS_LINEAR_FAMILY_H

#include "language_model.h"

/* K and V follow from the weights' shapes; so does whether there is a convolution or an output gate. */
typedef struct oracle_linear_config {
  int64_t heads, kv_heads;
  double (*map)(double); /* of q and k; NULL: none */
  double clamp_min;      /* GLA; 0: none */
  bool lower_bounds;     /* HGRN2 */
} oracle_linear_config;

extern const oracle_family oracle_gla, oracle_hgrn2, oracle_retnet;

#endif
