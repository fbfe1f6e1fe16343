/* memora: a matrix memory of positive entries that sum to a constant, moved in their logarithms (MIRAS, arXiv 2504.13173).
 *
 *   q, k = unit(silu(conv(W x))), v = silu(conv(W x));  alpha, eta gates of x
 *   A_t = alpha_t A_{t-1} - eta_t k_t (W^T k_t - v_t)^T at the W that the chunk starts with
 *   W_t = c softmax(A_t),  o_t = W_t^T q_t
 *   y = W_o (RMSNorm(o) silu(W_g x))
 *
 * A is ln W up to a constant in each softmax, which the softmax does not see: this is W_t = c softmax(alpha ln W_{t-1} - eta
 * grad). */
#include <stddef.h>

#include "mixers/miras.h"

enum { SOFTMAX_MEMORY, SOFTMAX_COLUMN, SOFTMAX_ROW };

typedef struct config {
  comba_miras miras; /* first: shared functions take a pointer to it */
  int softmax_over;
  double memory_total;
} config;

/* With it a memory of equal entries returns ones for a unit query of equal entries. */
static double total(const config *c) {
  const double K = (double)c->miras.heads.head_dim, V = (double)comba_memory_value_dim(&c->miras.heads);
  if (c->memory_total != 0 || c->miras.memory == COMBA_MIRAS_MLP) return c->memory_total;
  return c->softmax_over == SOFTMAX_MEMORY ? V * sqrt(K) : c->softmax_over == SOFTMAX_COLUMN ? sqrt(K) : V / sqrt(K);
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  static const comba_memory_map maps[] = {COMBA_MEMORY_SOFTMAX, COMBA_MEMORY_SOFTMAX_COLUMN, COMBA_MEMORY_SOFTMAX_ROW};
  const comba_memory_attributes attributes = {.map = maps[c->softmax_over], .map_total = total(c)};
  const comba_memory_operands operands = comba_build_miras(build, &c->miras, x, 1, 1);
  return comba_build_miras_output(build, &c->miras, x, operands, attributes, 1);
}

static const char *const scopes[] = {"memory", "column", "row", NULL};

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    COMBA_MIRAS_FIELDS(config, miras),
    {"softmax_over", COMBA_FIELD_CHOICE, FIELD(softmax_over), .default_value = SOFTMAX_MEMORY, .choices = scopes,
     .help =
         "what sums to memory_total: a head's memory, what it holds for each value channel (column), or key channel"},
    {"memory_total", COMBA_FIELD_NUMBER, FIELD(memory_total), .default_value = 0, .minimum = 1e-6, .maximum = 1e9,
     .nullable = true, .null_value = 0,
     .help = "the constant c; null: with it a memory of equal entries returns ones for a unit query of equal entries"},
    {0}};

const comba_mixer_row comba_mixer_memora = {
    .model_type = "memora",
    .recurrence = "W_t = c softmax(a_t ln W_{t-1} - r_t (W k_t - v_t) k_t^T);  o_t = W_t q_t",
    COMBA_MIRAS_ROW,
    .fields = fields,
    .config_size = sizeof(config),
    .check = comba_miras_check,
    .build = build_mixer,
};
