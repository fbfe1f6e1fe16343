/* Mixers whose state decays by itself, S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T: GLA, simple GLA, HGRN2, RetNet, linear
 * attention. */
#ifndef COMBA_TESTS_LINEAR_FAMILY_H
#define COMBA_TESTS_LINEAR_FAMILY_H

#include "language_model.h"

typedef enum oracle_feature_map {
  ORACLE_ELEMENTWISE_PRODUCT,
  ORACLE_HEDGEHOG,
  ORACLE_T2R,
  ORACLE_DPFP,
  ORACLE_DPFP_PAPER,
  ORACLE_NO_WEIGHTS, /* `map` alone */
} oracle_feature_map;

/* K and V follow from the weights' shapes; so does whether there is a convolution or an output gate. */
typedef struct oracle_linear_config {
  int64_t heads, kv_heads;
  double (*map)(double); /* of q and k; NULL: none */
  double clamp_min;      /* GLA; 0: none */
  bool lower_bounds;     /* HGRN2 */
  /* linear attention */
  oracle_feature_map features;
  bool tied, norm_q, norm_k, normalized;
} oracle_linear_config;

extern const oracle_family oracle_gla, oracle_simple_gla, oracle_hgrn2, oracle_retnet, oracle_linear_attn;

#endif
