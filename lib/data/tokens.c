#include "data/tokens.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/random.h"
#include "data/fingerprint.h"
#include "data/read_at.h"

enum { HEADER = 32, PIECE = 1 << 16 /* ids read at once */ };
/* The last two are also the versions of a token file. */
typedef enum kind { PLAIN, STREAM, EXAMPLES } kind;
static const char *const kinds[] = {"a plain file", "a stream of tokens", "a file of examples"};
static const char magic[8] = "COMBATOK";

typedef struct token_file {
  char *path;
  int descriptor;
  int width;      /* bytes an id */
  uint64_t limit; /* every id is below it */
  int64_t first;  /* place of its first token in the stream */
  int64_t count, offset;
  int64_t example; /* tokens an example */
} token_file;

struct comba_tokens {
  token_file *files;
  int64_t file_count, count, vocab_size;
  kind kind; /* of all files */
  uint64_t fingerprint;
};

static uint64_t read_number(const uint8_t *bytes, int width) {
  uint64_t number = 0;
  for (int i = width - 1; i >= 0; i--) number = number << 8 | bytes[i];
  return number;
}

/* Tokens [position, position + count) of one file, checked. */
static comba_status read_ids(const token_file *file, int64_t position, int64_t count, int32_t *ids) {
  uint8_t bytes[4096];
  const int64_t at_once = (int64_t)sizeof bytes / file->width;
  for (int64_t done = 0; done < count;) {
    const int64_t some = count - done < at_once ? count - done : at_once;
    const comba_status status = comba_read_at(file->descriptor, file->path, bytes, (size_t)(some * file->width),
                                              file->offset + (position + done) * file->width);
    if (status != COMBA_OK) return status;
    for (int64_t i = 0; i < some; i++) {
      const uint64_t id = read_number(bytes + i * file->width, file->width);
      if (id >= file->limit)
        return comba_fail(COMBA_ERROR_FORMAT, "%s: token %lld has id %llu, expected less than the vocabulary's %llu",
                          file->path, (long long)(position + done + i), (unsigned long long)id,
                          (unsigned long long)file->limit);
      ids[done + i] = (int32_t)id;
    }
    done += some;
  }
  return COMBA_OK;
}

/* Marks [position, position + count) of a file of examples, checked. */
static comba_status read_marks(const token_file *file, int64_t position, int64_t count, uint8_t *marks) {
  const comba_status status = comba_read_at(file->descriptor, file->path, marks, (size_t)count,
                                            file->offset + file->count * file->width + position);
  if (status != COMBA_OK) return status;
  for (int64_t i = 0; i < count; i++)
    if (marks[i] > 1)
      return comba_fail(COMBA_ERROR_FORMAT, "%s: token %lld has mark %d, expected 0 or 1", file->path,
                        (long long)(position + i), marks[i]);
  return COMBA_OK;
}

/* ---- Opening ---- */

/* Fills in what a token file's header says; PLAIN for any other. */
static comba_status read_header(const comba_tokens *tokens, token_file *file, int64_t size, kind *kind) {
  uint8_t header[HEADER] = {0};
  const size_t length = size < HEADER ? (size_t)size : HEADER;
  const comba_status status = comba_read_at(file->descriptor, file->path, header, length, 0);
  *kind = PLAIN;
  if (status != COMBA_OK || length < sizeof magic || memcmp(header, magic, sizeof magic) != 0) return status;
  if (length < HEADER)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: %zu bytes, expected a token file's header of %d", file->path, length,
                      HEADER);
  const uint64_t version = read_number(header + 8, 4), vocab_size = read_number(header + 12, 4);
  const uint64_t width = read_number(header + 16, 4), example = read_number(header + 20, 4);
  const uint64_t count = read_number(header + 24, 8);
  if (version != STREAM && version != EXAMPLES)
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: token file of version %llu, expected %d or %d", file->path,
                      (unsigned long long)version, STREAM, EXAMPLES);
  if (width != 2 && width != 4)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: %llu bytes an id, expected 2 or 4", file->path,
                      (unsigned long long)width);
  const uint64_t each = width + (version == EXAMPLES);
  if ((uint64_t)(size - HEADER) % each || count != (uint64_t)(size - HEADER) / each)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: %lld bytes, expected %d and %llu ids of %llu bytes%s", file->path,
                      (long long)size, HEADER, (unsigned long long)count, (unsigned long long)width,
                      version == EXAMPLES ? ", each with a mark" : "");
  if (version == STREAM ? example != 0 : example < 2 || count % example)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: %llu tokens an example, expected %s", file->path,
                      (unsigned long long)example,
                      version == STREAM ? "0 in a stream" : "a divisor of the number of ids from 2 on");
  if (vocab_size > (uint64_t)tokens->vocab_size)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: vocab_size %llu, expected at most the model's %lld", file->path,
                      (unsigned long long)vocab_size, (long long)tokens->vocab_size);
  file->width = (int)width;
  file->limit = vocab_size;
  file->offset = HEADER;
  file->count = (int64_t)count;
  file->example = (int64_t)example;
  *kind = (enum kind)version;
  return COMBA_OK;
}

static comba_status open_file(comba_tokens *tokens, token_file *file, const char *path) {
  struct stat information;
  kind kind = PLAIN;
  file->path = strdup(path);
  if (!file->path) return comba_fail_memory(strlen(path), "a path");
  file->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not wait for its writer */
  if (file->descriptor < 0 || fstat(file->descriptor, &information) != 0)
    return comba_fail(COMBA_ERROR_IO, "%s: cannot open: %s", path, strerror(errno));
  if (!S_ISREG(information.st_mode)) return comba_fail(COMBA_ERROR_IO, "%s: not a regular file", path);
  const int64_t size = information.st_size;
  file->width = 1;
  file->limit = 256;
  file->count = size;
  const comba_status status = read_header(tokens, file, size, &kind);
  if (status != COMBA_OK) return status;
  if (file->count == 0) return comba_fail(COMBA_ERROR_FORMAT, "%s: no tokens, expected at least one", path);
  if (file != tokens->files && tokens->kind != kind)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: %s beside %s, expected files of one kind", path, kinds[kind],
                      tokens->files[0].path);
  tokens->kind = kind;
  if (kind == PLAIN && tokens->vocab_size < 256)
    return comba_fail(COMBA_ERROR_ARGUMENT,
                      "%s: a plain file has ids up to 255, the vocabulary has %lld; expected 256 or more", path,
                      (long long)tokens->vocab_size);
  file->first = tokens->count;
  tokens->count += file->count;
  return comba_fingerprint_add_file(&tokens->fingerprint, file->descriptor, path);
}

/* Reads all ids and marks. */
static comba_status check_content(const comba_tokens *tokens) {
  comba_status status = COMBA_OK;
  int64_t targets = 0;
  int32_t *ids = malloc(PIECE * sizeof *ids);
  if (!ids) return comba_fail_memory(PIECE * sizeof *ids, "tokens");
  for (int64_t i = 0; i < tokens->file_count; i++) {
    const token_file *file = &tokens->files[i];
    for (int64_t at = 0; at < file->count; at += PIECE) {
      const int64_t some = file->count - at < PIECE ? file->count - at : PIECE;
      COMBA_TRY(read_ids(file, at, some, ids));
      if (tokens->kind != EXAMPLES) continue;
      uint8_t *marks = (uint8_t *)ids;
      COMBA_TRY(read_marks(file, at, some, marks));
      for (int64_t k = 0; k < some; k++) targets += marks[k] && (at + k) % file->example;
    }
  }
  if (tokens->kind == EXAMPLES && !targets)
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: no token behind the first of an example is marked as a target",
                        tokens->files[0].path);
cleanup:
  free(ids);
  return status;
}

comba_status comba_tokens_open(comba_tokens **tokens, const char *const *paths, int64_t files, int64_t vocab_size) {
  comba_status status = COMBA_OK;
  if (files < 1) return comba_fail(COMBA_ERROR_ARGUMENT, "no data files, expected at least one");
  if (vocab_size < 1 || vocab_size > INT32_MAX)
    return comba_fail(COMBA_ERROR_ARGUMENT, "vocabulary of %lld, expected 1 to %d", (long long)vocab_size, INT32_MAX);
  comba_tokens *t = calloc(1, sizeof *t);
  if (!t) return comba_fail_memory(sizeof *t, "a token stream");
  t->vocab_size = vocab_size;
  t->fingerprint = COMBA_FINGERPRINT_START;
  t->files = calloc((size_t)files, sizeof *t->files);
  if (!t->files) {
    status = comba_fail_memory((size_t)files * sizeof *t->files, "a token stream");
    goto cleanup;
  }
  for (int64_t i = 0; i < files; i++) {
    t->files[i].descriptor = -1;
    t->file_count++;
    COMBA_TRY(open_file(t, &t->files[i], paths[i]));
  }
  if (t->count < 2) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: one token in all, expected at least two", paths[0]);
    goto cleanup;
  }
  if (t->kind != PLAIN) COMBA_TRY(check_content(t));
  *tokens = t;
  t = NULL;
cleanup:
  comba_tokens_free(t);
  return status;
}

void comba_tokens_free(comba_tokens *tokens) {
  if (!tokens) return;
  for (int64_t i = 0; i < tokens->file_count; i++) {
    free(tokens->files[i].path);
    if (tokens->files[i].descriptor >= 0) close(tokens->files[i].descriptor);
  }
  free(tokens->files);
  free(tokens);
}

int64_t comba_tokens_count(const comba_tokens *tokens) {
  return tokens->count;
}

bool comba_tokens_are_bytes(const comba_tokens *tokens) {
  return tokens->kind == PLAIN;
}

comba_status comba_tokens_check_length(const comba_tokens *tokens, int64_t length, bool training) {
  for (int64_t i = 0; i < tokens->file_count; i++)
    if (length < tokens->files[i].example)
      return comba_fail(COMBA_ERROR_ARGUMENT,
                        "%s: examples of %lld tokens, expected sequences at least as long, not %lld",
                        tokens->files[i].path, (long long)tokens->files[i].example, (long long)length);
  if (training && tokens->kind != EXAMPLES && (length < 1 || tokens->count <= length))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: %lld tokens in all, expected at least %lld for sequences of %lld",
                      tokens->files[0].path, (long long)tokens->count, (long long)length + 1, (long long)length);
  return COMBA_OK;
}

uint64_t comba_tokens_fingerprint(const comba_tokens *tokens) {
  return tokens->fingerprint;
}

/* ---- Reading ---- */

/* Tokens [start, start + count) of the stream, all of which exist. */
static comba_status read_stream(const comba_tokens *tokens, int64_t start, int64_t count, int32_t *ids) {
  for (int64_t i = 0; i < tokens->file_count && count > 0; i++) {
    const token_file *file = &tokens->files[i];
    const int64_t position = start - file->first;
    if (position >= file->count) continue;
    const int64_t some = file->count - position < count ? file->count - position : count;
    const comba_status status = read_ids(file, position, some, ids);
    if (status != COMBA_OK) return status;
    start += some;
    ids += some;
    count -= some;
  }
  return COMBA_OK;
}

comba_status comba_tokens_window(const comba_tokens *tokens, int64_t start, int64_t length, int32_t *input,
                                 int32_t *target) {
  if (start < 0 || start >= tokens->count || length < 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "window of %lld tokens at %lld, expected one within the stream's %lld",
                      (long long)length, (long long)start, (long long)tokens->count);
  const int64_t left = tokens->count - start, inputs = left < length ? left : length;
  comba_status status = read_stream(tokens, start, inputs, input);
  if (status != COMBA_OK) return status;
  /* the targets are the inputs one further on, and one token more if there is one */
  memcpy(target, input + 1, (size_t)(inputs - 1) * sizeof *target);
  target[inputs - 1] = -100;
  if (left > inputs) status = read_stream(tokens, start + inputs, 1, target + inputs - 1);
  for (int64_t i = inputs; i < length; i++) {
    input[i] = 0;
    target[i] = -100;
  }
  return status;
}

/* Example number `index` of all files, in the first tokens of input and target (length). */
static comba_status read_example(const comba_tokens *tokens, int64_t index, int64_t length, int32_t *input,
                                 int32_t *target) {
  comba_status status = COMBA_OK;
  const token_file *file = tokens->files;
  for (; index >= file->count / file->example; file++) index -= file->count / file->example;
  const int64_t tokens_each = file->example, start = index * tokens_each;
  uint8_t *marks = malloc((size_t)tokens_each);
  if (!marks) return comba_fail_memory((size_t)tokens_each, "marks");
  COMBA_TRY(read_ids(file, start, tokens_each, input));
  COMBA_TRY(read_marks(file, start, tokens_each, marks));
  for (int64_t i = 0; i < length; i++) {
    if (i >= tokens_each) input[i] = 0;
    target[i] = i + 1 < tokens_each && marks[i + 1] ? input[i + 1] : -100;
  }
cleanup:
  free(marks);
  return status;
}

comba_status comba_tokens_evaluation_window(const comba_tokens *tokens, int64_t w, int64_t length, int32_t *input,
                                            int32_t *target) {
  return tokens->kind == EXAMPLES ? read_example(tokens, w, length, input, target)
                                  : comba_tokens_window(tokens, w * length, length, input, target);
}

comba_status comba_tokens_batch(const comba_tokens *tokens, uint64_t seed, int64_t step, int64_t batch, int64_t length,
                                int32_t *input, int32_t *target) {
  comba_status status = comba_tokens_check_length(tokens, length, true);
  if (status != COMBA_OK) return status;
  /* starts that leave a target for the last token, or examples */
  const int64_t places = tokens->kind == EXAMPLES ? comba_tokens_windows(tokens, length) : tokens->count - length;
  for (int64_t row = 0; row < batch && status == COMBA_OK; row++) {
    const int64_t place = (int64_t)comba_random_below(seed, comba_random_stream("tokens"),
                                                      (uint64_t)(step * batch + row), (uint64_t)places);
    int32_t *in = input + row * length, *out = target + row * length;
    status = tokens->kind == EXAMPLES ? read_example(tokens, place, length, in, out)
                                      : comba_tokens_window(tokens, place, length, in, out);
  }
  return status;
}

int64_t comba_tokens_windows(const comba_tokens *tokens, int64_t length) {
  if (tokens->kind != EXAMPLES) return (tokens->count - 1 + length - 1) / length;
  int64_t examples = 0;
  for (int64_t i = 0; i < tokens->file_count; i++) examples += tokens->files[i].count / tokens->files[i].example;
  return examples;
}

/* ---- Writing ---- */

static void put_number(uint8_t *bytes, uint64_t number, int width) {
  for (int i = 0; i < width; i++) bytes[i] = (uint8_t)(number >> 8 * i);
}

static comba_status write_file(const char *path, const int32_t *ids, const uint8_t *marks, int64_t count,
                               int64_t example, int64_t vocab_size) {
  comba_status status = COMBA_OK;
  comba_file_writer *writer = NULL;
  uint8_t header[HEADER] = {0}, buffer[4096];
  size_t used = 0;
  const int width = vocab_size <= 65536 ? 2 : 4;
  memcpy(header, magic, sizeof magic);
  put_number(header + 8, marks ? EXAMPLES : STREAM, 4);
  put_number(header + 12, (uint64_t)vocab_size, 4);
  put_number(header + 16, (uint64_t)width, 4);
  put_number(header + 20, (uint64_t)example, 4);
  put_number(header + 24, (uint64_t)count, 8);
  COMBA_TRY(comba_file_writer_create(&writer, path));
  COMBA_TRY(comba_file_writer_write(writer, header, sizeof header));
  for (int64_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      status = comba_fail(COMBA_ERROR_ARGUMENT, "%s: token %lld has id %d, expected 0 to %lld", path, (long long)i,
                          ids[i], (long long)vocab_size - 1);
      goto cleanup;
    }
    put_number(buffer + used, (uint64_t)ids[i], width);
    used += (size_t)width;
    if (used < sizeof buffer && i + 1 < count) continue;
    COMBA_TRY(comba_file_writer_write(writer, buffer, used));
    used = 0;
  }
  if (marks) COMBA_TRY(comba_file_writer_write(writer, marks, (size_t)count));
  COMBA_TRY(comba_file_writer_commit(&writer));
cleanup:
  comba_file_writer_free(writer);
  return status;
}

comba_status comba_tokens_write(const char *path, const int32_t *ids, int64_t count, int64_t vocab_size) {
  return write_file(path, ids, NULL, count, 0, vocab_size);
}

comba_status comba_tokens_write_examples(const char *path, const int32_t *ids, const uint8_t *marks, int64_t examples,
                                         int64_t length, int64_t vocab_size) {
  return write_file(path, ids, marks, examples * length, length, vocab_size);
}
