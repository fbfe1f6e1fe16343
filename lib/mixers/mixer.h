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

/* A field that a vision model's config has another default for. */
typedef struct comba_default {
  const char *name; /* NULL ends the list */
  double value;
} comba_default;

typedef struct comba_mixer_row {
  const char *model_type;    /* "comba"; "comba_vision" is the same mixer in a vision model */
  const char *recurrence;    /* one line, for `info --mixers` */
  const char *source;        /* paper */
  const comba_field *fields; /* of the config struct; ends with a row without a name */
  /* Where fla-zoo defaults differ from fla: of these or of the common fields; NULL: nowhere. */
  const comba_default *vision_defaults;
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
extern const comba_mixer_row comba_mixer_linear_attn;
extern const comba_mixer_row comba_mixer_mlstm;
extern const comba_mixer_row comba_mixer_retnet;
extern const comba_mixer_row comba_mixer_simple_gla;
extern const comba_mixer_row comba_mixer_transformer;

/* All mixers; ends with NULL. */
extern const comba_mixer_row *const comba_mixer_table[];
/* The row of a model_type, with or without "_vision"; NULL if there is none. */
const comba_mixer_row *comba_mixer_find(const char *model_type);

#endif
