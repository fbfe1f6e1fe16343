/* A config.json. One that is accepted must come back the same from what is written of it. */
#include "fuzz.h"
#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *text = malloc(size + 1), *written = NULL, *again = NULL, *warnings = NULL;
  comba_config *config = NULL, *copy = NULL;
  if (!text) abort();
  memcpy(text, data, size);
  text[size] = 0;
  if (comba_config_parse(&config, text, "input", &warnings) == COMBA_OK) {
    if (comba_config_write(config, &written) != COMBA_OK) abort();
    if (comba_config_parse(&copy, written, "written", NULL) != COMBA_OK) abort();
    if (comba_config_write(copy, &again) != COMBA_OK || strcmp(written, again) != 0) abort();
  }
  comba_config_free(config);
  comba_config_free(copy);
  free(warnings);
  free(written);
  free(again);
  free(text);
  return 0;
}
