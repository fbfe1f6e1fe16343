/* CIFAR-10's binary batches: records of one label byte and 32 x 32 pixels as three planes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/dataset_parts.h"
#include "data/read_at.h"

enum { SIDE = 32, PIXELS = 3 * SIDE * SIDE, RECORD = 1 + PIXELS, RECORDS_AT_ONCE = 256, CLASSES = 10 };

/* data_batch_N.bin is the training split, test_batch.bin the test split. */
static bool is_batch(const char *name, comba_split *split) {
  const size_t length = strlen(name);
  *split = strcmp(name, "test_batch.bin") == 0 ? COMBA_SPLIT_TEST : COMBA_SPLIT_TRAIN;
  if (*split == COMBA_SPLIT_TEST) return true;
  return length > 15 && memcmp(name, "data_batch_", 11) == 0 && strcmp(name + length - 4, ".bin") == 0;
}

bool comba_listing_is_cifar(const comba_listing *root) {
  comba_split split;
  for (int64_t i = 0; i < root->count; i++)
    if (!root->entries[i].folder && is_batch(root->entries[i].name, &split)) return true;
  return false;
}

static comba_status add_batch(comba_dataset *dataset, const char *name, comba_split split) {
  comba_status status = COMBA_OK;
  int64_t size = 0;
  uint8_t *records = malloc((size_t)RECORDS_AT_ONCE * RECORD);
  if (!records) return comba_fail_memory((size_t)RECORDS_AT_ONCE * RECORD, "CIFAR records");
  COMBA_TRY(comba_dataset_add_file(dataset, name, &size));
  comba_record_file *file = &dataset->files[dataset->file_count - 1];
  file->offset = 1;
  file->stride = RECORD;
  file->width = file->height = SIDE;
  file->channels = 3;
  file->planar = true;
  if (size == 0 || size % RECORD) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: %lld bytes, expected a multiple of %d, the size of a record",
                        file->path, (long long)size, RECORD);
    goto cleanup;
  }
  const int64_t count = size / RECORD;
  for (int64_t i = 0; i < count; i++) {
    const int64_t within = i % RECORDS_AT_ONCE;
    const int64_t ahead = count - i < RECORDS_AT_ONCE ? count - i : RECORDS_AT_ONCE;
    if (within == 0)
      COMBA_TRY(comba_read_at(file->descriptor, file->path, records, (size_t)(ahead * RECORD), i * RECORD));
    const int label = records[within * RECORD];
    if (label >= dataset->class_count) {
      status = comba_fail(COMBA_ERROR_FORMAT, "%s: label %d at record %lld, expected less than %lld", file->path, label,
                          (long long)i, (long long)dataset->class_count);
      goto cleanup;
    }
    COMBA_TRY(comba_dataset_add_sample(
        dataset,
        (comba_sample){.record = i, .file = dataset->file_count - 1, .label = label, .split = split, .slot = -1}));
  }
cleanup:
  free(records);
  return status;
}

comba_status comba_dataset_open_cifar(comba_dataset *dataset, const comba_listing *root) {
  comba_status status = COMBA_OK;
  dataset->channels = 3;
  dataset->side = SIDE;
  if (comba_listing_find(root, "batches.meta.txt"))
    COMBA_TRY(comba_dataset_add_listed_classes(dataset, "batches.meta.txt"));
  else
    COMBA_TRY(comba_dataset_add_numbered_classes(dataset, CLASSES));
  for (int64_t i = 0; i < root->count; i++) { /* in the order of names: data_batch_1 to 5, then test_batch */
    comba_split split;
    if (!root->entries[i].folder && is_batch(root->entries[i].name, &split))
      COMBA_TRY(add_batch(dataset, root->entries[i].name, split));
  }
cleanup:
  return status;
}
