/* retnet: retention (arXiv 2307.08621).
 *
 *   q, k = rotary(f(W x));  v = W x
 *   S_t = a_h S_{t-1} + k_t v_t^T,  a_h = 1 - 2^(-5-h) of query head h = 0, 1, ...;  o_t = K^(-1/2) S_t^T q_t
 *   y = W_o (RMSNorm(o) * silu(W_g x))
 *
 * With fewer key/value heads, k and v of a head serve a group of consecutive query heads, each with its own decay and state. */
#include "mixers/expanded_heads.h"
#include "mixers/recurrence.h"

enum { FIRST_EXPONENT = 5 }; /* of head 0 */
static const double ROTARY_BASE = 10000;

typedef struct config {
  comba_expanded_heads heads; /* first: shared functions take a pointer to it */
  int feature_map;
  comba_swish_output output;
} config;

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_tensor *q, *k, *v;
  comba_build_expanded_heads(build, &c->heads, x, 0, &q, &k, &v);
  q = comba_build_activation_map(build, q, c->feature_map, COMBA_GELU);
  k = comba_build_activation_map(build, k, c->feature_map, COMBA_GELU);
  q = comba_rotary(build->graph, q, build->position, build->cu_seqlens, ROTARY_BASE);
  k = comba_rotary(build->graph, k, build->position, build->cu_seqlens, ROTARY_BASE);
  comba_tensor *o = comba_build_scalar_decay(build, "recurrent", q, k, v, NULL,
                                             (comba_scalar_decay_attributes){.retention = FIRST_EXPONENT});
  return comba_build_swish_output(build, &c->output, x, o);
}

static const comba_field fields[] = {COMBA_EXPANDED_HEADS_FIELDS(config, heads, 8, 1, 2),
                                     COMBA_ACTIVATION_MAP_FIELD(config, feature_map),
                                     COMBA_SWISH_OUTPUT_FIELDS(config, output),
                                     {0}};

static comba_status check(const void *config, int64_t hidden_size) {
  const comba_status status = comba_expanded_heads_check(config, hidden_size);
  const int64_t K = comba_key_size(config, hidden_size);
  if (status != COMBA_OK || K % 2 == 0) return status;
  return comba_fail(COMBA_ERROR_ARGUMENT,
                    "hidden_size * expand_k / num_heads is %lld, expected an even number for rotary positions",
                    (long long)K);
}

static const comba_default vision_defaults[] = {{"expand_v", 1}, {0}};

const comba_mixer_row comba_mixer_retnet = {
    .model_type = "retnet",
    .recurrence = "S_t = a_h S_{t-1} + v_t k_t^T, a_h = 1 - 2^(-5-h);  o_t = S_t q_t",
    .source = "Retentive Network: A Successor to Transformer for Large Language Models, arXiv 2307.08621",
    .fields = fields,
    .vision_defaults = vision_defaults,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = comba_expanded_heads_cost,
};
