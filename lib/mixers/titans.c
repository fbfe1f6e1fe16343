/* titans: a matrix memory that descends its loss with momentum and forgets (Titans, arXiv 2501.00663, Eq. 13 and 14).
 *
 *   q, k = unit(silu(conv(W x))), v = silu(conv(W x));  alpha, eta, theta gates of x
 *   U_t = eta_t U_{t-1} - theta_t grad |M^T k_t - v_t|^2,  the gradient at the memory M that the chunk starts with
 *   M_t = (1 - alpha_t) M_{t-1} + U_t,  o_t = M_t^T q_t
 *   y = W_o (RMSNorm(o) silu(W_g x)) */
#include <stddef.h>

#include "mixers/memory_heads.h"

typedef struct config {
  comba_memory_heads heads; /* first: shared functions take a pointer to it */
  bool use_momentum;
} config;

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_memory_operands operands = comba_build_memory_heads(build, &c->heads, x, 2, 2, 0.02);
  if (c->use_momentum) operands.momentum = comba_build_memory_decay(build, "momentum", x, c->heads.num_heads, 0);
  return comba_build_memory_output(build, &c->heads, x, operands, (comba_memory_attributes){0});
}

static const comba_field fields[] = {COMBA_MEMORY_HEADS_FIELDS(config, heads),
                                     {"use_momentum", COMBA_FIELD_BOOLEAN, offsetof(config, use_momentum),
                                      .default_value = 1, .help = "false: eta = 0, plain gradient steps"},
                                     {0}};

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  comba_mixer_cost result = comba_memory_heads_cost(opaque, hidden_size);
  if (!((const config *)opaque)->use_momentum) return result;
  const double memory = result.state_elements / 2;
  result.state_elements += memory;
  result.flops_per_token += 4 * memory;
  return result;
}

const comba_mixer_row comba_mixer_titans = {
    .model_type = "titans",
    .recurrence = "U_t = e_t U_{t-1} - r_t grad |M k_t - v_t|^2;  M_t = (1 - a_t) M_{t-1} + U_t;  o_t = M_t q_t",
    .source = "Titans: Learning to Memorize at Test Time, arXiv 2501.00663",
    .fields = fields,
    .config_size = sizeof(config),
    .check = comba_memory_heads_check,
    .build = build_mixer,
    .cost = cost,
};
