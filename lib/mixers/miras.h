/* What the MIRAS mixers share: their memory is a matrix, or, experimentally, two layers. */
#ifndef COMBA_MIXERS_MIRAS_H
#define COMBA_MIXERS_MIRAS_H

#include "mixers/memory_heads.h"

enum { COMBA_MIRAS_MATRIX, COMBA_MIRAS_MLP };

/* The first member of their configs. */
typedef struct comba_miras {
  comba_memory_heads heads; /* first: shared functions take a pointer to it */
  int memory;
  int64_t expand;
  bool norm_in_loss;
} comba_miras;

extern const char *const comba_miras_memories[];

// clang-format off
/* Their rows of a schema, for the member `member` of the struct `type`. */
#define COMBA_MIRAS_FIELDS(type, member)                                                                               \
  COMBA_MEMORY_HEADS_FIELDS(type, member.heads),                                                                       \
  {"memory", COMBA_FIELD_CHOICE, offsetof(type, member.memory), .default_value = COMBA_MIRAS_MATRIX,                   \
   .choices = comba_miras_memories, .help = "matrix; mlp, experimental: x + LayerNorm(two layers of x)"},              \
  {"memory_expand", COMBA_FIELD_INTEGER, offsetof(type, member.expand), .default_value = 4, .minimum = 1,              \
   .maximum = 64, .help = "mlp: width of the hidden layer = head_dim * memory_expand"},                                \
  {"norm_in_loss", COMBA_FIELD_BOOLEAN, offsetof(type, member.norm_in_loss), .default_value = 1,                       \
   .help = "mlp: the inner loss is of what the norm returns; false: of what it is given"}
// clang-format on

/* `check` and `cost` of a mixer's row; `config` begins with a comba_miras. */
comba_status comba_miras_check(const void *config, int64_t hidden_size);
comba_mixer_cost comba_miras_cost(const void *config, int64_t hidden_size);
/* What their rows share. */
#define COMBA_MIRAS_ROW .source = "It's All Connected (MIRAS), arXiv 2504.13173", .cost = comba_miras_cost

/* Entries of the memory's first matrix. */
double comba_miras_entries(const comba_miras *miras);

/* As comba_build_memory_heads and comba_build_memory_output; the first memory is drawn with `deviation`. */
comba_memory_operands comba_build_miras(comba_build *build, const comba_miras *miras, comba_tensor *x, double slope,
                                        double deviation);
comba_tensor *comba_build_miras_output(comba_build *build, const comba_miras *miras, comba_tensor *x,
                                       comba_memory_operands operands, comba_memory_attributes attributes,
                                       double deviation);

#endif
