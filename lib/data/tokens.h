/* Token streams for language models.
 *
 * A token file starts with a header of 32 bytes, all numbers little-endian:
 *     offset 0   8 bytes  "COMBATOK"
 *            8   uint32   version, 1
 *           12   uint32   vocab_size: every id is below it
 *           16   uint32   bytes an id: 2 (uint16) or 4 (uint32)
 *           20   uint32   0
 *           24   uint64   number of ids
 * and goes on with the ids; its size is exactly 32 + number * width. Any other file is read as bytes, ids 0 to 255. Several
 * files are one stream, in the order given; token files and plain files do not mix. */
#ifndef COMBA_DATA_TOKENS_H
#define COMBA_DATA_TOKENS_H

#include <stdbool.h>

#include "core/status.h"

typedef struct comba_tokens comba_tokens;

/* Opens the files and reads them once to check every id against `vocab_size`, the model's. An id too large is an error that
 * names file, position and value; so are an empty file and fewer than two tokens in all. */
comba_status comba_tokens_open(comba_tokens **tokens, const char *const *paths, int64_t files, int64_t vocab_size);
void comba_tokens_free(comba_tokens *tokens);

int64_t comba_tokens_count(const comba_tokens *tokens);
/* Whether the stream is plain bytes, so that loss in bits is bits a byte. */
bool comba_tokens_are_bytes(const comba_tokens *tokens);
/* Hash of the files' sizes and of samples of their content; the paths have no part. */
uint64_t comba_tokens_fingerprint(const comba_tokens *tokens);

/* A window: input (length) = tokens start, start + 1, ...; target (length) = the token after each. Beyond the end of the stream the
 * input is 0 and the target -100. */
comba_status comba_tokens_window(const comba_tokens *tokens, int64_t start, int64_t length, int32_t *input,
                                 int32_t *target);

/* Training: input and target (batch, length), rows at places that depend on (seed, step, row) alone, each with a target for
 * every token. A stream of fewer than length + 1 tokens is an error. */
comba_status comba_tokens_batch(const comba_tokens *tokens, uint64_t seed, int64_t step, int64_t batch, int64_t length,
                                int32_t *input, int32_t *target);

/* Evaluation: windows w = 0, 1, ... start at w * length and do not overlap; every token but the first is a target once. */
int64_t comba_tokens_windows(const comba_tokens *tokens, int64_t length);

/* Writes a token file; 2 bytes an id where vocab_size allows it. */
comba_status comba_tokens_write(const char *path, const int32_t *ids, int64_t count, int64_t vocab_size);

#endif
