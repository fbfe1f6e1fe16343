#include "data/dataset.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "data/dataset_parts.h"
#include "data/fingerprint.h"

const char *comba_split_name(comba_split split) {
  static const char *const names[] = {"train", "validation", "test", "all"};
  return names[split];
}

/* ---- Classes ---- */

static comba_status append_class(comba_dataset *dataset, const char *name) {
  if (dataset->class_count == dataset->class_capacity) {
    const int64_t capacity = dataset->class_capacity ? dataset->class_capacity * 2 : 16;
    char **classes = realloc(dataset->classes, (size_t)capacity * sizeof *classes);
    if (!classes) return comba_fail_memory((size_t)capacity * sizeof *classes, "class names");
    dataset->classes = classes;
    dataset->class_capacity = capacity;
  }
  char *copy = strdup(name);
  if (!copy) return comba_fail_memory(strlen(name), "a class name");
  dataset->classes[dataset->class_count++] = copy;
  dataset->fingerprint = comba_fingerprint_add_text(dataset->fingerprint, name);
  return COMBA_OK;
}

comba_status comba_dataset_add_class(comba_dataset *dataset, const char *name) {
  json_t *text = json_string(name); /* class names go into config.json */
  if (!text) return comba_fail(COMBA_ERROR_FORMAT, "%s: class name '%s' is not valid UTF-8", dataset->root, name);
  json_decref(text);
  if (!name[0]) return comba_fail(COMBA_ERROR_FORMAT, "%s: empty class name", dataset->root);
  return append_class(dataset, name);
}

comba_status comba_dataset_add_numbered_classes(comba_dataset *dataset, int64_t count) {
  comba_status status = COMBA_OK;
  char name[24];
  for (int64_t i = 0; i < count && status == COMBA_OK; i++) {
    snprintf(name, sizeof name, "%lld", (long long)i);
    status = append_class(dataset, name);
  }
  return status;
}

static int compare_names(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Lists may repeat a name; folders cannot. */
static comba_status check_distinct(const comba_dataset *dataset, const char *path) {
  comba_status status = COMBA_OK;
  const size_t count = (size_t)dataset->class_count;
  char **sorted = malloc((count + 1) * sizeof *sorted);
  if (!sorted) return comba_fail_memory(count * sizeof *sorted, "class names");
  if (count) memcpy(sorted, dataset->classes, count * sizeof *sorted);
  qsort(sorted, count, sizeof *sorted, compare_names);
  for (size_t i = 1; i < count && status == COMBA_OK; i++)
    if (strcmp(sorted[i - 1], sorted[i]) == 0)
      status = comba_fail(COMBA_ERROR_FORMAT, "%s: class '%s' stands there twice", path, sorted[i]);
  free(sorted);
  return status;
}

comba_status comba_dataset_add_listed_classes(comba_dataset *dataset, const char *file) {
  enum { LIMIT = 1 << 20 };
  comba_status status = COMBA_OK;
  char *path = NULL, *text = NULL, *rest = NULL;
  size_t size = 0;
  COMBA_TRY(comba_path_join(&path, dataset->root, file));
  COMBA_TRY(comba_file_read(path, LIMIT, &text, &size));
  for (char *line = strtok_r(text, "\r\n", &rest); line; line = strtok_r(NULL, "\r\n", &rest))
    COMBA_TRY(comba_dataset_add_class(dataset, line));
  if (dataset->class_count == 0) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: no class names, expected one a line", path);
    goto cleanup;
  }
  COMBA_TRY(check_distinct(dataset, path));
cleanup:
  free(text);
  free(path);
  return status;
}

comba_status comba_dataset_match_classes(comba_dataset *dataset, const char *const *names, int64_t count) {
  comba_status status = COMBA_OK;
  const int64_t old_count = dataset->class_count;
  int32_t *label = calloc((size_t)old_count + 1, sizeof *label);
  char **classes = calloc((size_t)count + 1, sizeof *classes);
  if (!label || !classes) {
    status = comba_fail_memory((size_t)count * sizeof *classes, "class names");
    goto cleanup;
  }
  for (int64_t i = 0; i < old_count; i++) {
    int64_t j = 0;
    while (j < count && strcmp(names[j], dataset->classes[i]) != 0) j++;
    if (j == count) {
      status = comba_fail(COMBA_ERROR_FORMAT, "%s: class '%s' is not among the %lld classes expected ('%s' to '%s')",
                          dataset->root, dataset->classes[i], (long long)count, count ? names[0] : "",
                          count ? names[count - 1] : "");
      goto cleanup;
    }
    label[i] = (int32_t)j;
  }
  for (int64_t i = 0; i < count; i++)
    if (!(classes[i] = strdup(names[i]))) {
      status = comba_fail_memory(strlen(names[i]), "a class name");
      goto cleanup;
    }
  for (int64_t i = 0; i < dataset->sample_count; i++) dataset->samples[i].label = label[dataset->samples[i].label];
  char **old = dataset->classes;
  dataset->classes = classes;
  dataset->class_count = dataset->class_capacity = count;
  classes = old;
cleanup: /* `classes` are the old ones, or the new ones as far as they were made */
  for (int64_t i = 0; classes && i < (status == COMBA_OK ? old_count : count); i++) free(classes[i]);
  free(classes);
  free(label);
  return status;
}

/* ---- Samples ---- */

comba_status comba_dataset_add_sample(comba_dataset *dataset, comba_sample sample) {
  if (dataset->sample_count == dataset->sample_capacity) {
    const int64_t capacity = dataset->sample_capacity ? dataset->sample_capacity * 2 : 1024;
    comba_sample *samples = realloc(dataset->samples, (size_t)capacity * sizeof *samples);
    if (!samples) {
      free(sample.name);
      return comba_fail_memory((size_t)capacity * sizeof *samples, "a list of pictures");
    }
    dataset->samples = samples;
    dataset->sample_capacity = capacity;
  }
  dataset->samples[dataset->sample_count++] = sample;
  dataset->fingerprint = comba_fingerprint_add_number(dataset->fingerprint, (uint64_t)sample.label);
  return COMBA_OK;
}

comba_status comba_dataset_index(comba_dataset *dataset) {
  int64_t next[COMBA_SPLIT_ALL + 2] = {0};
  if (!dataset->order) dataset->order = malloc((size_t)dataset->sample_count * sizeof *dataset->order + 1);
  if (!dataset->order) return comba_fail_memory((size_t)dataset->sample_count * sizeof(int64_t), "a list of pictures");
  /* ALL has no samples of its own: SKIPPED, the number after it, takes its place here */
  for (int64_t i = 0; i < dataset->sample_count; i++) {
    const int32_t split = dataset->samples[i].split;
    next[split < COMBA_SPLIT_ALL ? split : COMBA_SPLIT_ALL]++;
  }
  int64_t sum = 0;
  for (int split = 0; split <= COMBA_SPLIT_ALL; split++) {
    dataset->first[split] = sum;
    sum += next[split];
    next[split] = dataset->first[split];
  }
  dataset->first[COMBA_SPLIT_ALL + 1] = sum;
  for (int64_t i = 0; i < dataset->sample_count; i++) {
    const int32_t split = dataset->samples[i].split;
    dataset->order[next[split < COMBA_SPLIT_ALL ? split : COMBA_SPLIT_ALL]++] = i;
  }
  return COMBA_OK;
}

void comba_sample_path(const comba_dataset *dataset, const comba_sample *sample, char *path, size_t size) {
  if (sample->name)
    snprintf(path, size, "%s", sample->name);
  else
    snprintf(path, size, "%s:%lld", dataset->files[sample->file].name, (long long)sample->record);
}

static const comba_sample *sample_at(const comba_dataset *dataset, comba_split split, int64_t index) {
  const int64_t start = split == COMBA_SPLIT_ALL ? 0 : dataset->first[split];
  return &dataset->samples[dataset->order[start + index]];
}

int64_t comba_dataset_count(const comba_dataset *dataset, comba_split split) {
  if (split == COMBA_SPLIT_ALL) return dataset->first[COMBA_SPLIT_ALL];
  return dataset->first[split + 1] - dataset->first[split];
}

comba_split comba_dataset_held_out(const comba_dataset *dataset) {
  return comba_dataset_count(dataset, COMBA_SPLIT_VALIDATION) ? COMBA_SPLIT_VALIDATION : COMBA_SPLIT_TEST;
}

int32_t comba_dataset_label(const comba_dataset *dataset, comba_split split, int64_t index) {
  return sample_at(dataset, split, index)->label;
}

void comba_dataset_path(const comba_dataset *dataset, comba_split split, int64_t index, char *path, size_t size) {
  comba_sample_path(dataset, sample_at(dataset, split, index), path, size);
}

comba_status comba_dataset_load(const comba_dataset *dataset, comba_split split, int64_t index, uint8_t *pixels) {
  return comba_sample_load(dataset, sample_at(dataset, split, index), pixels);
}

/* ---- Opening ---- */

/* What the folder has instead of what was expected. */
static comba_status fail_unknown(const comba_dataset *dataset, const comba_listing *root) {
  char found[256] = "nothing";
  for (int64_t i = 0, used = 0; i < root->count && i < 3; i++) {
    const int length =
        snprintf(found + used, sizeof found - (size_t)used, "%s%s", i ? ", " : "", root->entries[i].name);
    if (length < 0 || used + length >= (int64_t)sizeof found) break;
    used += length;
  }
  for (int64_t i = 0; i < root->count; i++) {
    const size_t length = strlen(root->entries[i].name);
    if (length > 3 && strcmp(root->entries[i].name + length - 3, ".gz") == 0)
      return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: found %s; unpack it first (gunzip)", dataset->root,
                        root->entries[i].name);
  }
  return comba_fail(
      COMBA_ERROR_FORMAT,
      "%s: found %lld entries (%s%s), expected class folders, IDX files (train-images-idx3-ubyte) or CIFAR "
      "batches (data_batch_1.bin)",
      dataset->root, (long long)root->count, found, root->count > 3 ? ", ..." : "");
}

comba_status comba_dataset_open(comba_dataset **dataset, const char *path) {
  comba_status status = COMBA_OK;
  comba_listing root = {0};
  bool folders = false;
  comba_dataset *d = calloc(1, sizeof *d);
  if (!d) return comba_fail_memory(sizeof *d, "a data set");
  d->fingerprint = COMBA_FINGERPRINT_START;
  d->root = strdup(path);
  if (!d->root) {
    status = comba_fail_memory(strlen(path), "a path");
    goto cleanup;
  }
  COMBA_TRY(comba_listing_read(&root, path));
  for (int64_t i = 0; i < root.count; i++) folders |= root.entries[i].folder;
  if (comba_listing_is_idx(&root))
    COMBA_TRY(comba_dataset_open_idx(d, &root));
  else if (comba_listing_is_cifar(&root))
    COMBA_TRY(comba_dataset_open_cifar(d, &root));
  else if (folders)
    COMBA_TRY(comba_dataset_open_folders(d, &root));
  else {
    status = fail_unknown(d, &root);
    goto cleanup;
  }
  if (d->sample_count == 0) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: no pictures", path);
    goto cleanup;
  }
  if (d->class_count > INT32_MAX) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: %lld classes, expected at most %d", path, (long long)d->class_count,
                        INT32_MAX);
    goto cleanup;
  }
  COMBA_TRY(comba_dataset_index(d));
  *dataset = d;
  d = NULL;
cleanup:
  comba_listing_free(&root);
  comba_dataset_free(d);
  return status;
}

void comba_dataset_free(comba_dataset *dataset) {
  if (!dataset) return;
  for (int64_t i = 0; i < dataset->class_count; i++) free(dataset->classes[i]);
  for (int64_t i = 0; i < dataset->sample_count; i++) free(dataset->samples[i].name);
  for (int i = 0; i < dataset->file_count; i++) {
    free(dataset->files[i].name);
    free(dataset->files[i].path);
    if (dataset->files[i].descriptor >= 0) close(dataset->files[i].descriptor);
  }
  for (int64_t i = 0; i < dataset->skipped_count; i++) {
    free(dataset->skipped[i].path);
    free(dataset->skipped[i].reason);
  }
  free(dataset->classes);
  free(dataset->samples);
  free(dataset->files);
  free(dataset->skipped);
  free(dataset->order);
  free(dataset->cache);
  free(dataset->root);
  free(dataset);
}

int comba_dataset_channels(const comba_dataset *dataset) {
  return dataset->channels;
}

int64_t comba_dataset_side(const comba_dataset *dataset) {
  return dataset->side;
}

uint64_t comba_dataset_fingerprint(const comba_dataset *dataset) {
  return dataset->fingerprint;
}

int64_t comba_dataset_classes(const comba_dataset *dataset) {
  return dataset->class_count;
}

const char *comba_dataset_class_name(const comba_dataset *dataset, int64_t label) {
  return dataset->classes[label];
}
