/* IDX, the format of MNIST and Fashion-MNIST: a big-endian header (magic, sizes), then bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/dataset_parts.h"
#include "data/image_codec.h"
#include "data/read_at.h"

enum { MAGIC_LABELS = 0x801, MAGIC_IMAGES = 0x803, LABELS_HEADER = 8, IMAGES_HEADER = 16 };

static const char *const prefixes[] = {"train", "t10k"};
static const char *const image_suffixes[] = {"-images-idx3-ubyte", "-images.idx3-ubyte"};
static const char *const label_suffixes[] = {"-labels-idx1-ubyte", "-labels.idx1-ubyte"};

static const comba_listing_entry *find(const comba_listing *root, const char *prefix, const char *const suffixes[2]) {
  char name[64];
  const comba_listing_entry *entry = NULL;
  for (int i = 0; i < 2 && !entry; i++) {
    snprintf(name, sizeof name, "%s%s", prefix, suffixes[i]);
    entry = comba_listing_find(root, name);
  }
  return entry && !entry->folder ? entry : NULL;
}

bool comba_listing_is_idx(const comba_listing *root) {
  return find(root, "train", image_suffixes) || find(root, "t10k", image_suffixes);
}

static int64_t read32(const uint8_t *bytes) {
  return (int64_t)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

/* Reads `words` big-endian numbers from the start of the file added last. */
static comba_status read_header(const comba_dataset *dataset, int64_t size, int words, int64_t magic, int64_t *header) {
  const comba_record_file *file = &dataset->files[dataset->file_count - 1];
  uint8_t bytes[IMAGES_HEADER];
  if (size < words * 4)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: %lld bytes, expected an IDX header of %d", file->path, (long long)size,
                      words * 4);
  const comba_status status = comba_read_at(file->descriptor, file->path, bytes, (size_t)words * 4, 0);
  if (status != COMBA_OK) return status;
  for (int i = 0; i < words; i++) header[i] = read32(bytes + i * 4);
  if (header[0] != magic)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: IDX magic number %lld, expected %lld", file->path, (long long)header[0],
                      (long long)magic);
  return COMBA_OK;
}

static comba_status check_size(const comba_dataset *dataset, int64_t size, int64_t header, int64_t count,
                               int64_t each) {
  if (size == header + count * each) return COMBA_OK; /* count < 2^32, each <= 2^26 */
  return comba_fail(COMBA_ERROR_FORMAT, "%s: %lld bytes, expected %lld for %lld records of %lld bytes",
                    dataset->files[dataset->file_count - 1].path, (long long)size, (long long)(header + count * each),
                    (long long)count, (long long)each);
}

static comba_status add_images(comba_dataset *dataset, const char *name, int64_t *count) {
  comba_status status = COMBA_OK;
  int64_t size = 0, header[4] = {0};
  COMBA_TRY(comba_dataset_add_file(dataset, name, &size));
  COMBA_TRY(read_header(dataset, size, 4, MAGIC_IMAGES, header));
  const int64_t height = header[2], width = header[3];
  COMBA_TRY(comba_image_check_size(dataset->files[dataset->file_count - 1].path, width, height));
  COMBA_TRY(check_size(dataset, size, IMAGES_HEADER, header[1], width * height));
  comba_record_file *file = &dataset->files[dataset->file_count - 1];
  file->offset = IMAGES_HEADER;
  file->stride = width * height;
  file->width = width;
  file->height = height;
  file->channels = 1;
  if (dataset->side == 0) dataset->side = width > height ? width : height;
  *count = header[1];
cleanup:
  return status;
}

/* All labels of a file; to be freed. */
static comba_status read_labels(comba_dataset *dataset, const char *name, uint8_t **labels, int64_t *count) {
  comba_status status = COMBA_OK;
  int64_t size = 0, header[2] = {0};
  *labels = NULL;
  COMBA_TRY(comba_dataset_add_file(dataset, name, &size));
  COMBA_TRY(read_header(dataset, size, 2, MAGIC_LABELS, header));
  COMBA_TRY(check_size(dataset, size, LABELS_HEADER, header[1], 1));
  *count = header[1];
  *labels = malloc((size_t)*count + 1);
  if (!*labels) {
    status = comba_fail_memory((size_t)*count, "labels");
    goto cleanup;
  }
  const comba_record_file *labels_file = &dataset->files[dataset->file_count - 1];
  COMBA_TRY(comba_read_at(labels_file->descriptor, labels_file->path, *labels, (size_t)*count, LABELS_HEADER));
cleanup:
  return status;
}

static comba_status add_pair(comba_dataset *dataset, const comba_listing *root, const char *prefix, comba_split split) {
  comba_status status = COMBA_OK;
  uint8_t *labels = NULL;
  int64_t count = 0, label_count = 0;
  const comba_listing_entry *images = find(root, prefix, image_suffixes), *file = find(root, prefix, label_suffixes);
  if (!images) return COMBA_OK;
  if (!file)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: found %s, expected %s%s beside it", dataset->root, images->name, prefix,
                      label_suffixes[0]);
  COMBA_TRY(add_images(dataset, images->name, &count));
  const int32_t image_file = dataset->file_count - 1;
  COMBA_TRY(read_labels(dataset, file->name, &labels, &label_count));
  if (label_count != count) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s/%s: %lld labels, expected one for each of the %lld pictures of %s",
                        dataset->root, file->name, (long long)label_count, (long long)count, images->name);
    goto cleanup;
  }
  if (dataset->class_count == 0) { /* without classes.txt the first file's labels say how many classes there are */
    int64_t classes = 0;
    for (int64_t i = 0; i < count; i++) classes = labels[i] >= classes ? labels[i] + 1 : classes;
    COMBA_TRY(comba_dataset_add_numbered_classes(dataset, classes));
  }
  for (int64_t i = 0; i < count; i++) {
    if (labels[i] >= dataset->class_count) {
      status = comba_fail(COMBA_ERROR_FORMAT, "%s/%s: label %d at position %lld, expected less than %lld",
                          dataset->root, file->name, labels[i], (long long)i, (long long)dataset->class_count);
      goto cleanup;
    }
    COMBA_TRY(comba_dataset_add_sample(
        dataset, (comba_sample){.record = i, .file = image_file, .label = labels[i], .split = split, .slot = -1}));
  }
cleanup:
  free(labels);
  return status;
}

comba_status comba_dataset_open_idx(comba_dataset *dataset, const comba_listing *root) {
  comba_status status = COMBA_OK;
  dataset->channels = 1;
  if (comba_listing_find(root, "classes.txt")) COMBA_TRY(comba_dataset_add_listed_classes(dataset, "classes.txt"));
  COMBA_TRY(add_pair(dataset, root, prefixes[0], COMBA_SPLIT_TRAIN));
  COMBA_TRY(add_pair(dataset, root, prefixes[1], COMBA_SPLIT_TEST));
cleanup:
  return status;
}
