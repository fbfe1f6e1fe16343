/* Token streams and examples for language models.
 *
 * A token file starts with a header of 32 bytes, all numbers little-endian:
 *     offset 0   8 bytes  "COMBATOK"
 *            8   uint32   version: 1 a stream, 2 examples
 *           12   uint32   vocab_size: every id is below it
 *           16   uint32   bytes an id: 2 (uint16) or 4 (uint32)
 *           20   uint32   tokens an example, a divisor of the number of ids; 0 in a stream
 *           24   uint64   number of ids
 * and goes on with the ids; behind those of examples there is one byte for each, its mark: 1 where the token is a target, 0
 * where it is only read. The size is exact. Any other file is read as a stream of bytes, ids 0 to 255. Several files are one
 * stream, or one set of examples, in the order given; the three kinds do not mix. */
#ifndef COMBA_DATA_TOKENS_H
#define COMBA_DATA_TOKENS_H

#include <stdbool.h>

#include "core/status.h"

typedef struct comba_tokens comba_tokens;

/* Opens the files and reads them once to check every id against `vocab_size`, the model's. An id too large is an error that
 * names file, position and value; so are an empty file, fewer than two tokens in all, and examples without a target. */
comba_status comba_tokens_open(comba_tokens **tokens, const char *const *paths, int64_t files, int64_t vocab_size);
void comba_tokens_free(comba_tokens *tokens);

int64_t comba_tokens_count(const comba_tokens *tokens);
/* An error unless sequences of `length` tokens hold every example and, for training, can be drawn from the stream. */
comba_status comba_tokens_check_length(const comba_tokens *tokens, int64_t length, bool training);
/* Whether the stream is plain bytes, so that loss in bits is bits a byte. */
bool comba_tokens_are_bytes(const comba_tokens *tokens);
/* Hash of the files' sizes and of samples of their content; the paths have no part. */
uint64_t comba_tokens_fingerprint(const comba_tokens *tokens);

/* A window of a stream: input (length) = tokens start, start + 1, ...; target (length) = the token after each. Beyond the end of the stream the
 * input is 0 and the target -100. */
comba_status comba_tokens_window(const comba_tokens *tokens, int64_t start, int64_t length, int32_t *input,
                                 int32_t *target);

/* Training: input and target (batch, length), rows at places that depend on (seed, step, row) alone. Of a stream each has a
 * target for every token; of examples each is one, from its first token, filled up like a window. A length that
 * comba_tokens_check_length refuses is an error. */
comba_status comba_tokens_batch(const comba_tokens *tokens, uint64_t seed, int64_t step, int64_t batch, int64_t length,
                                int32_t *input, int32_t *target);

/* Evaluation: windows w = 0, 1, ... of a stream start at w * length and do not overlap, every token but the first is a target
 * once; a window of examples is one of them. */
int64_t comba_tokens_windows(const comba_tokens *tokens, int64_t length);
comba_status comba_tokens_evaluation_window(const comba_tokens *tokens, int64_t w, int64_t length, int32_t *input,
                                            int32_t *target);

/* Write a token file; 2 bytes an id where vocab_size allows it. */
comba_status comba_tokens_write(const char *path, const int32_t *ids, int64_t count, int64_t vocab_size);
/* ids and marks (examples, length) */
comba_status comba_tokens_write_examples(const char *path, const int32_t *ids, const uint8_t *marks, int64_t examples,
                                         int64_t length, int64_t vocab_size);

#endif
