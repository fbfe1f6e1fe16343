/* A token file: what is read of it must be inside of the vocabulary. */
#include "data/tokens.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  enum { VOCABULARY = 1000, LENGTH = 16 };
  const char *const path = "tokens";
  comba_tokens *tokens = NULL;
  int32_t input[2 * LENGTH], target[2 * LENGTH];
  fuzz_write(path, data, size);
  if (comba_tokens_open(&tokens, &path, 1, VOCABULARY) != COMBA_OK) return 0;
  /* a file of examples that are longer is refused */
  const bool fits = comba_tokens_check_length(tokens, LENGTH, false) == COMBA_OK;
  const int64_t windows = fits ? comba_tokens_windows(tokens, LENGTH) : 0;
  for (int64_t w = 0; w < windows; w++) {
    if (comba_tokens_evaluation_window(tokens, w, LENGTH, input, target) != COMBA_OK) abort();
    for (int i = 0; i < LENGTH; i++)
      if (input[i] < 0 || input[i] >= VOCABULARY || target[i] >= VOCABULARY) abort();
  }
  comba_tokens_batch(tokens, 1, 0, 2, LENGTH, input, target);
  comba_tokens_free(tokens);
  return 0;
}
