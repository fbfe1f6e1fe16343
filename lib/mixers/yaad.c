/* yaad: a matrix memory with a Huber loss, robust against values far off (MIRAS, arXiv 2504.13173).
 *
 *   q, k = unit(silu(conv(W x))), v = silu(conv(W x));  alpha, eta gates of x;  delta_t = scale (elu(W_delta x) + 1)
 *   W_t = alpha_t W_{t-1} - eta_t k_t n_t^T,  o_t = W_t^T q_t
 *   n_t = e_t where |e_t| <= delta_t, else delta_t e_t / |e_t|,  e_t = W^T k_t - v_t at the W that the chunk starts with
 *   y = W_o (RMSNorm(o) silu(W_g x)) */
#include <stddef.h>

#include "mixers/miras.h"

enum { HUBER_TOKEN, HUBER_CHANNEL, HUBER_SIGN };
enum { DELTA_ELU, DELTA_SIGMOID };

static const double DEVIATION = 0.02; /* of the first memory */

typedef struct config {
  comba_miras miras; /* first: shared functions take a pointer to it */
  int huber, delta_map;
  double delta_scale;
} config;

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  static const comba_loss losses[] = {COMBA_LOSS_HUBER, COMBA_LOSS_HUBER_CHANNEL, COMBA_LOSS_HUBER_SIGN};
  const double length = c->huber == HUBER_CHANNEL ? 1 : sqrt((double)comba_memory_value_dim(&c->miras.heads));
  comba_memory_operands operands = comba_build_miras(build, &c->miras, x, 1, DEVIATION);
  operands.threshold =
      comba_build_memory_gate(build, "delta", x, c->miras.heads.num_heads,
                              c->delta_map == DELTA_ELU ? COMBA_ELU_PLUS_ONE : COMBA_SIGMOID, c->delta_scale * length);
  return comba_build_miras_output(build, &c->miras, x, operands,
                                  (comba_memory_attributes){.loss = {.kind = losses[c->huber]}}, DEVIATION);
}

static const char *const hubers[] = {"token", "channel", "sign", NULL};
static const char *const delta_maps[] = {"elu", "sigmoid", NULL};

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    COMBA_MIRAS_FIELDS(config, miras),
    {"huber", COMBA_FIELD_CHOICE, FIELD(huber), .default_value = HUBER_TOKEN, .choices = hubers,
     .help = "token: of the length of the error; channel: of each channel; sign: beyond delta in length the l1 loss"},
    {"delta_map", COMBA_FIELD_CHOICE, FIELD(delta_map), .default_value = DELTA_ELU, .choices = delta_maps,
     .help = "what makes delta positive: elu + 1, or sigmoid, which bounds it"},
    {"delta_scale", COMBA_FIELD_NUMBER, FIELD(delta_scale), .default_value = 1, .minimum = 1e-6, .maximum = 1e6,
     .help = "delta at the start, in errors of this size in every channel"},
    {0}};

const comba_mixer_row comba_mixer_yaad = {
    .model_type = "yaad",
    .recurrence = "W_t = a_t W_{t-1} - r_t n_t k_t^T, n_t = Huber'(W k_t - v_t);  o_t = W_t q_t",
    COMBA_MIRAS_ROW,
    .fields = fields,
    .config_size = sizeof(config),
    .check = comba_miras_check,
    .build = build_mixer,
};
