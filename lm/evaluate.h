/* The loss of a model over a whole token stream. */
#ifndef COMBA_LM_EVALUATE_H
#define COMBA_LM_EVALUATE_H

#include <jansson.h>

#include "comba.h"
#include "data/tokens.h"

/* Non-overlapping windows of `length` tokens, the state reset for each, `batch` at a time (the last batch is padded and masked).
 * Sets in `result`: loss (nats a token), perplexity, accuracy (share of targets that are the most probable token), tokens (targets),
 * and bits_per_byte for byte streams. */
comba_status lm_evaluate(comba_model *model, const comba_tokens *tokens, int64_t batch, int64_t length, bool quiet,
                         json_t *result);

#endif
