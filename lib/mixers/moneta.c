/* moneta: a matrix memory with an l_p loss, kept at the size that its l_q norm gives it (MIRAS, arXiv 2504.13173).
 *
 *   q, k = unit(silu(conv(W x))), v = silu(conv(W x));  alpha, eta gates of x
 *   A_t = alpha_t A_{t-1} - eta_t k_t n_t^T,  W_t = A_t / |A_t|_q^{q-2},  o_t = W_t^T q_t
 *   n_t = p sgn(e_t) |e_t|^{p-1},  e_t = W^T k_t - v_t at the W that the chunk starts with
 *   y = W_o (RMSNorm(o) silu(W_g x)) */
#include <stddef.h>

#include "mixers/miras.h"

typedef struct config {
  comba_miras miras; /* first: shared functions take a pointer to it */
  double p, q, sign_sharpness, error_smoothing;
  bool mirror_map;
} config;

/* A normal A of this deviation has |A|_4 = 1, where both maps leave the size as it is: E a^4 = 3 deviation^4. */
static double deviation(const config *c) {
  return pow(3 * comba_miras_entries(&c->miras), -0.25);
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  const comba_memory_attributes attributes = {
      .loss = {COMBA_LOSS_POWER, .exponent = c->p, .sharpness = c->sign_sharpness, .smoothing = c->error_smoothing},
      .map = c->mirror_map ? COMBA_MEMORY_MIRROR : COMBA_MEMORY_POWER,
      .map_exponent = c->q};
  const comba_memory_operands operands = comba_build_miras(build, &c->miras, x, c->p, deviation(c));
  return comba_build_miras_output(build, &c->miras, x, operands, attributes, deviation(c));
}

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    COMBA_MIRAS_FIELDS(config, miras),
    {"p", COMBA_FIELD_NUMBER, FIELD(p), .default_value = 3, .minimum = 1, .maximum = 16,
     .help = "exponent of the inner loss"},
    {"q", COMBA_FIELD_NUMBER, FIELD(q), .default_value = 4, .minimum = 2, .maximum = 16,
     .help = "norm of the memory; 2: none"},
    {"sign_sharpness", COMBA_FIELD_NUMBER, FIELD(sign_sharpness), .default_value = 10, .minimum = 1e-3, .maximum = 1e6,
     .help = "s of tanh(s e), in place of the sign of an error"},
    {"error_smoothing", COMBA_FIELD_NUMBER, FIELD(error_smoothing), .default_value = 1e-6, .minimum = 1e-12,
     .maximum = 1, .help = "e of sqrt(x^2 + e), in place of an error's size"},
    {"mirror_map", COMBA_FIELD_BOOLEAN, FIELD(mirror_map), .default_value = 0,
     .help =
         "W = sgn(A) |A|^{q-1} / |A|_q^{q-2}, the gradient of 1/2 |A|_q^2, in place of the paper's A / |A|_q^{q-2}"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  if (!c->miras.heads.learn_memory)
    return comba_fail(COMBA_ERROR_ARGUMENT, "learn_memory is false, expected true: a memory of zeros has no map");
  return comba_miras_check(opaque, hidden_size);
}

const comba_mixer_row comba_mixer_moneta = {
    .model_type = "moneta",
    .recurrence = "A_t = a_t A_{t-1} - r_t n_t k_t^T, n_t = p sgn(e) |e|^{p-1};  o_t = A_t / |A_t|_q^{q-2} q_t",
    COMBA_MIRAS_ROW,
    .fields = fields,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
};
