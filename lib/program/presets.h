/* Built-in presets: a config and a recipe under a name. */
#ifndef COMBA_PROGRAM_PRESETS_H
#define COMBA_PROGRAM_PRESETS_H

#include "core/status.h"
#include "program/trainer.h"

typedef struct comba_preset {
  const char *name, *help;
  const char *config;              /* text of a config.json */
  comba_training_options training; /* what the recipe sets, the rest 0 = unset */
  int64_t sequence_length;         /* language */
  double epochs, label_smoothing;  /* vision */
  int64_t crop_padding;
  int flip;
} comba_preset;

/* NULL with the failure stored if there is none of that name; the message lists the names. `presets` ends with no name. */
const comba_preset *comba_preset_find(const comba_preset *presets, const char *name);
/* "NAME  help" a line on standard output. */
void comba_preset_list(const comba_preset *presets);

/* The model's config text: of the preset, or of the file; exactly one of the two is given. To be freed. */
comba_status comba_preset_config(const comba_preset *presets, const char *preset, const char *config_path, char **text);

/* comba_model_create, for a config that comba_config_warn has passed; one that is too large for the machine is named. */
comba_status comba_config_create(comba_model **model, const char *text, const char *source,
                                 const comba_options *options);

/* Parses a config for its unknown keys and prints one warning that lists them. */
comba_status comba_config_warn(const char *text, const char *source);

#endif
