#include "program/presets.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "model/config.h"

const comba_preset *comba_preset_find(const comba_preset *presets, const char *name) {
  char list[512] = "";
  for (const comba_preset *preset = presets; preset->name; preset++) {
    if (!strcmp(preset->name, name)) return preset;
    if (strlen(list) + strlen(preset->name) + 3 < sizeof list) strcat(strcat(list, *list ? ", " : ""), preset->name);
  }
  comba_fail(COMBA_ERROR_ARGUMENT, "--preset is '%s', expected one of %s", name, list);
  return NULL;
}

void comba_preset_list(const comba_preset *presets) {
  for (const comba_preset *preset = presets; preset->name; preset++) printf("%-20s %s\n", preset->name, preset->help);
}

comba_status comba_preset_config(const comba_preset *presets, const char *name, const char *config_path, char **text) {
  size_t size = 0;
  if (!name == !config_path)
    return comba_fail(COMBA_ERROR_ARGUMENT, name ? "--preset and --config are both given, expected one of them"
                                                 : "--preset or --config is missing: what model to build");
  if (config_path) {
    const comba_status status = comba_file_read(config_path, (size_t)1 << 24, text, &size);
    if (status != COMBA_OK || strlen(*text) == size) return status;
    free(*text);
    *text = NULL;
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: a zero byte, expected JSON text", config_path);
  }
  const comba_preset *preset = comba_preset_find(presets, name);
  if (!preset) return COMBA_ERROR_ARGUMENT;
  *text = strdup(preset->config);
  return *text ? COMBA_OK : comba_fail_memory(strlen(preset->config), "a config");
}

comba_status comba_config_create(comba_model **model, const char *text, const char *source,
                                 const comba_options *options) {
  const comba_status status = comba_model_create(model, text, options);
  return status == COMBA_ERROR_MEMORY ? comba_fail_in(status, "%s", source) : status;
}

comba_status comba_config_warn(const char *text, const char *source) {
  comba_config *config = NULL;
  char *warnings = NULL;
  const comba_status status = comba_config_parse(&config, text, source, &warnings);
  if (status != COMBA_OK) return status;
  if (warnings) fprintf(stderr, "warning: %s\n", warnings);
  free(warnings);
  comba_config_free(config);
  return COMBA_OK;
}
