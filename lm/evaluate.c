#include "evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_private.h"
#include "program/progress.h"

static bool is_largest(const float *logits, int64_t count, int32_t target) {
  for (int64_t i = 0; i < count; i++)
    if (!(logits[i] <= logits[target])) return false; /* not a number: wrong */
  return true;
}

comba_status lm_evaluate(comba_model *model, const comba_tokens *tokens, int64_t batch, int64_t length, bool quiet,
                         json_t *result) {
  const int64_t windows = comba_tokens_windows(tokens, length);
  int64_t count = 0, right = 0;
  comba_model_info info;
  double sum = 0;
  comba_progress progress;
  comba_status status = COMBA_OK;
  comba_model_describe(model, &info);
  if (batch > windows) batch = windows;
  int32_t *input = comba_allocate((size_t)(batch * length) * sizeof *input, "input tokens");
  int32_t *target = comba_allocate((size_t)(batch * length) * sizeof *target, "target tokens");
  if (!input || !target) COMBA_TRY(COMBA_ERROR_MEMORY);
  comba_progress_start(&progress, "evaluate", "window", 0, windows, quiet);
  for (int64_t window = 0; window < windows; window += batch) {
    for (int64_t row = 0; row < batch; row++) {
      int32_t *in = input + row * length, *out = target + row * length;
      if (window + row < windows) {
        COMBA_TRY(comba_tokens_evaluation_window(tokens, window + row, length, in, out));
      } else { /* the last batch is filled up with rows that count for nothing */
        memset(in, 0, (size_t)length * sizeof *in);
        for (int64_t i = 0; i < length; i++) out[i] = -100;
      }
    }
    const comba_batch rows = {.batch = batch, .length = length, .input_ids = input, .targets = target};
    COMBA_TRY(comba_model_forward(model, &rows, COMBA_PASS_EVALUATE, NULL));
    const float *losses = comba_model_row_losses(model), *logits = comba_model_logits(model);
    for (int64_t i = 0; i < batch * length; i++) {
      if (target[i] < 0) continue;
      sum += losses[i];
      right += is_largest(logits + i * info.vocab_size, info.vocab_size, target[i]);
      count++;
    }
    comba_progress_update(&progress, window + batch < windows ? window + batch : windows, "loss %.4f",
                          count ? sum / (double)count : 0);
  }
  comba_progress_clear(&progress);
  const double loss = sum / (double)count;
  json_object_set_new(result, "loss", json_real(isfinite(loss) ? loss : 1e30));
  json_object_set_new(result, "perplexity", json_real(loss < 60 ? exp(loss) : 1e30));
  if (comba_tokens_are_bytes(tokens))
    json_object_set_new(result, "bits_per_byte", json_real(loss < 1e30 ? loss / log(2) : 1e30));
  json_object_set_new(result, "accuracy", json_real((double)right / (double)count));
  json_object_set_new(result, "tokens", json_integer(count));
cleanup:
  free(input);
  free(target);
  return status;
}
