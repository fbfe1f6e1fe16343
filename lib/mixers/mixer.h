/* A token mixer: one file lib/mixers/NAME.c with a config struct, its schema rows and a build function; one row in
 * lib/mixers/table.c. The build function is forward code over the operators (ops/ops.h). */
#ifndef COMBA_MIXERS_MIXER_H
#define COMBA_MIXERS_MIXER_H

#include "model/build.h"
#include "model/field.h"

typedef struct comba_mixer_cost {
  double state_elements; /* of one sequence and layer; grows with T where `state_grows` */
  bool state_grows;
  double flops_per_token; /* forward, engine only */
} comba_mixer_cost;

/* A field that a model with this mixer has another default for. */
typedef struct comba_default {
  const char *name; /* NULL ends the list */
  double value;
} comba_default;

/* What a language model with this mixer calls its parts, where the released one departs from fla's usual names. */
typedef struct comba_names {
  const char *model;      /* all but the head: "model" */
  const char *mixer;      /* of a layer: "attn" */
  const char *mixer_norm; /* before it: "attn_norm" */
  const char *final_norm; /* "norm" */
} comba_names;

/* What a language model with this mixer has in place of the usual RMSNorm, SwiGLU MLP and initial distributions. `config` is
 * the mixer's; parameters are named below `name`, or below the layer's prefix. */
typedef struct comba_block {
  comba_tensor *(*norm)(comba_build *build, const void *config, const char *name, comba_tensor *x);
  /* What the first layer makes of the embeddings before all else. */
  comba_tensor *(*enter)(comba_build *build, const void *config, comba_tensor *x);
  const char *mlp_norm;
  comba_tensor *(*mlp)(comba_build *build, const void *config, comba_tensor *x);
  comba_initial embeddings;
  comba_initial (*head)(int64_t vocabulary, int64_t hidden_size);
} comba_block;

/* Older files have some vectors (1,1,d) as the rows of one matrix. */
typedef struct comba_packed {
  const char *suffix; /* of its name */
  const char *const *rows;
  int64_t count;
} comba_packed;

typedef struct comba_mixer_row {
  const char *model_type;    /* "comba"; "comba_vision" is the same mixer in a vision model */
  const char *recurrence;    /* one line, for `info --mixers` */
  const char *source;        /* paper */
  const comba_field *fields; /* of the config struct; ends with a row without a name */
  /* Where fla-zoo defaults differ from fla: of these or of the common fields; NULL: nowhere. */
  const comba_default *vision_defaults;
  const comba_default *language_defaults; /* of the fields of language models alone, likewise */
  const comba_names *names;               /* NULL: the usual ones */
  bool trains_padding;                    /* the embedding of pad_token_id is trained like any other */
  const comba_block *block;               /* NULL: the usual one */
  const comba_packed *packed;             /* NULL: none */
  /* Taps of a convolution that the blocks of a language model begin with, as a residual branch: x += conv(RMSNorm(x)). NULL, or 0:
   * there is none. */
  int64_t (*front_taps)(const void *config);
  size_t config_size;
  /* Checks what the schema cannot (sizes that must divide); NULL: nothing to check. */
  comba_status (*check)(const void *config, int64_t hidden_size);
  /* x (B,T,d), already normalised -> (B,T,d). Parameters are named `prefix`.NAME. */
  comba_tensor *(*build)(comba_build *build, const void *config, comba_tensor *x);
  comba_mixer_cost (*cost)(const void *config, int64_t hidden_size);
} comba_mixer_row;

extern const comba_mixer_row comba_mixer_comba;
extern const comba_mixer_row comba_mixer_delta_net;
extern const comba_mixer_row comba_mixer_gated_deltanet;
extern const comba_mixer_row comba_mixer_gla;
extern const comba_mixer_row comba_mixer_hgrn2;
extern const comba_mixer_row comba_mixer_kda;
extern const comba_mixer_row comba_mixer_linear_attn;
extern const comba_mixer_row comba_mixer_mamba2;
extern const comba_mixer_row comba_mixer_memora;
extern const comba_mixer_row comba_mixer_mesa_net;
extern const comba_mixer_row comba_mixer_meta_la;
extern const comba_mixer_row comba_mixer_mlstm;
extern const comba_mixer_row comba_mixer_moneta;
extern const comba_mixer_row comba_mixer_retnet;
extern const comba_mixer_row comba_mixer_rwkv7;
extern const comba_mixer_row comba_mixer_s4d;
extern const comba_mixer_row comba_mixer_simple_gla;
extern const comba_mixer_row comba_mixer_titans;
extern const comba_mixer_row comba_mixer_transformer;
extern const comba_mixer_row comba_mixer_ttt_linear;
extern const comba_mixer_row comba_mixer_ttt_mlp;
extern const comba_mixer_row comba_mixer_yaad;

/* All mixers; ends with NULL. */
extern const comba_mixer_row *const comba_mixer_table[];
/* The names of a language model with this mixer. */
const comba_names *comba_mixer_names(const comba_mixer_row *row);
/* The row of a model_type, with or without "_vision"; NULL if there is none. */
const comba_mixer_row *comba_mixer_find(const char *model_type);

#endif
