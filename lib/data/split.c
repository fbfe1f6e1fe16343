/* Which picture is for training and which is held out, chosen by a seed and kept as a text file. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "data/dataset_parts.h"
#include "data/order.h"

enum { PATH_SIZE = 4096, LINE_SIZE = 2 * PATH_SIZE + 32 };

comba_status comba_dataset_split(comba_dataset *dataset, double fraction, uint64_t seed) {
  comba_status status = COMBA_OK;
  const int64_t count = comba_dataset_count(dataset, COMBA_SPLIT_TRAIN);
  if (!(fraction > 0 && fraction < 1))
    return comba_fail(COMBA_ERROR_ARGUMENT, "validation fraction %g, expected more than 0 and less than 1", fraction);
  if (comba_dataset_count(dataset, COMBA_SPLIT_VALIDATION))
    return comba_fail(COMBA_ERROR_ARGUMENT,
                      "%s: validation fraction %g, but the data has a validation split of its own", dataset->root,
                      fraction);
  int64_t *members = malloc((size_t)count * sizeof *members + 1); /* training pictures, grouped by class */
  int64_t *start = calloc((size_t)dataset->class_count + 2, sizeof *start);
  if (!members || !start) {
    status = comba_fail_memory((size_t)count * sizeof *members, "a list of pictures");
    goto cleanup;
  }
  for (int64_t i = 0; i < count; i++) start[comba_dataset_label(dataset, COMBA_SPLIT_TRAIN, i) + 2]++;
  for (int64_t label = 2; label < dataset->class_count + 2; label++) start[label] += start[label - 1];
  for (int64_t i = 0; i < count; i++) /* moves each class's start on to the next one's */
    members[start[comba_dataset_label(dataset, COMBA_SPLIT_TRAIN, i) + 1]++] = dataset->order[i];
  for (int64_t label = 0; label < dataset->class_count; label++) {
    int64_t *class_members = members + start[label];
    const int64_t size = start[label + 1] - start[label];
    int64_t held_out = (int64_t)round(fraction * (double)size);
    if (held_out < 1) held_out = 1;
    if (held_out >= size) held_out = size - 1;
    comba_order_shuffle(class_members, size, seed, comba_random_stream("validation split") + (uint64_t)label);
    for (int64_t i = 0; i < held_out; i++) dataset->samples[class_members[i]].split = COMBA_SPLIT_VALIDATION;
  }
  COMBA_TRY(comba_dataset_index(dataset));
  if (comba_dataset_count(dataset, COMBA_SPLIT_VALIDATION) == 0)
    status =
        comba_fail(COMBA_ERROR_FORMAT, "%s: every class has one picture, expected two to hold one out", dataset->root);
cleanup:
  free(start);
  free(members);
  return status;
}

static const char *name_of(int32_t split) {
  return split == COMBA_SPLIT_SKIPPED ? "skipped" : comba_split_name((comba_split)split);
}

/* "path<TAB>" with what would break the line escaped; its length. */
static int format_path(const comba_dataset *dataset, const comba_sample *sample, char *line) {
  char path[PATH_SIZE];
  int length = 0;
  comba_sample_path(dataset, sample, path, sizeof path);
  for (const char *c = path; *c; c++) {
    if (*c == '\t' || *c == '\n' || *c == '\\') line[length++] = '\\';
    line[length++] = *c == '\t' ? 't' : (*c == '\n' ? 'n' : *c);
  }
  line[length++] = '\t';
  line[length] = 0;
  return length;
}

comba_status comba_dataset_write_split(const comba_dataset *dataset, const char *path) {
  comba_status status = COMBA_OK;
  comba_file_writer *writer = NULL;
  char line[LINE_SIZE];
  COMBA_TRY(comba_file_writer_create(&writer, path));
  for (int64_t i = 0; i < dataset->sample_count; i++) {
    int length = format_path(dataset, &dataset->samples[i], line);
    length += snprintf(line + length, sizeof line - (size_t)length, "%s\n", name_of(dataset->samples[i].split));
    COMBA_TRY(comba_file_writer_write(writer, line, (size_t)length));
  }
  COMBA_TRY(comba_file_writer_commit(&writer));
cleanup:
  comba_file_writer_free(writer);
  return status;
}

/* The split that a line names for this sample, or -1 where it is another sample's or names none. */
static int32_t parse_line(const comba_dataset *dataset, const comba_sample *sample, const char *text, size_t length) {
  static const int32_t splits[] = {COMBA_SPLIT_TRAIN, COMBA_SPLIT_VALIDATION, COMBA_SPLIT_TEST, COMBA_SPLIT_SKIPPED};
  char line[LINE_SIZE];
  const size_t prefix = (size_t)format_path(dataset, sample, line);
  if (length < prefix || memcmp(text, line, prefix) != 0) return -1;
  for (int i = 0; i < 4; i++) {
    const char *name = name_of(splits[i]);
    if (strlen(name) == length - prefix && memcmp(text + prefix, name, length - prefix) == 0) return splits[i];
  }
  return -1;
}

comba_status comba_dataset_read_split(comba_dataset *dataset, const char *path) {
  comba_status status = COMBA_OK;
  char *text = NULL, expected[LINE_SIZE];
  size_t size = 0;
  int32_t *splits = malloc((size_t)dataset->sample_count * sizeof *splits + 1);
  if (!splits) return comba_fail_memory((size_t)dataset->sample_count * sizeof *splits, "a split");
  COMBA_TRY(comba_file_read(path, (size_t)dataset->sample_count * LINE_SIZE, &text, &size));
  const char *line = text;
  for (int64_t i = 0; i < dataset->sample_count; i++) {
    const char *end = memchr(line, '\n', (size_t)(text + size - line));
    const size_t length = (size_t)((end ? end : text + size) - line);
    splits[i] = parse_line(dataset, &dataset->samples[i], line, length);
    if (splits[i] < 0) {
      format_path(dataset, &dataset->samples[i], expected);
      expected[strlen(expected) - 1] = 0; /* its tab */
      status = comba_fail(COMBA_ERROR_FORMAT,
                          "%s: line %lld is '%.*s', expected '%s', a tab and train, validation, test or skipped: %s",
                          path, (long long)i + 1, (int)(length < 200 ? length : 200), line, expected,
                          "the file is damaged, or the data is not what it was made from");
      goto cleanup;
    }
    line = end ? end + 1 : text + size;
  }
  if (line != text + size) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: more lines than the %lld pictures of %s", path,
                        (long long)dataset->sample_count, dataset->root);
    goto cleanup;
  }
  for (int64_t i = 0; i < dataset->sample_count; i++) dataset->samples[i].split = splits[i];
  COMBA_TRY(comba_dataset_index(dataset));
cleanup:
  free(text);
  free(splits);
  return status;
}
