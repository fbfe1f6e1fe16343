/* What dataset.c and the readers of the three layouts share. */
#ifndef COMBA_DATA_DATASET_PARTS_H
#define COMBA_DATA_DATASET_PARTS_H

#include "data/dataset.h"

enum { COMBA_SPLIT_SKIPPED = COMBA_SPLIT_ALL + 1 };

/* One picture: a file of its own (`name`, below the root) or record number `record` of file number `file`. */
typedef struct comba_sample {
  char *name;
  int64_t record;
  int32_t file;
  int32_t label;
  int32_t split;
  int64_t slot;                /* its place in the cache, or -1 */
  bool summed;                 /* once it was decoded: */
  uint64_t sum[3], squares[3]; /* of its pixels, by channel */
} comba_sample;

/* Pictures of one size behind each other. */
typedef struct comba_record_file {
  char *name, *path; /* below the root, and with it */
  int descriptor;
  int64_t offset, stride; /* of the first picture, and from one to the next, in bytes */
  int64_t width, height;
  int channels;
  bool planar; /* (channels, height, width), otherwise (height, width, channels) */
} comba_record_file;

typedef struct comba_skipped {
  char *path, *reason;
} comba_skipped;

struct comba_dataset {
  char *root;
  char **classes;
  int64_t class_count, class_capacity;
  comba_sample *samples; /* in the data's order: split, class, name, or file, record */
  int64_t sample_count, sample_capacity;
  comba_record_file *files;
  int file_count;
  int channels;
  int64_t side;
  uint64_t fingerprint;
  int64_t *order;                     /* sample numbers, grouped by split, the skipped ones last */
  int64_t first[COMBA_SPLIT_ALL + 2]; /* where each split starts in `order`; at ALL the skipped ones start */
  comba_prepare_options prepared;
  uint8_t *cache; /* (slots, side, side, channels) or NULL */
  comba_skipped *skipped;
  int64_t skipped_count;
};

/* What a folder holds, sorted bytewise, without dot-files and without what is neither file nor folder. */
typedef struct comba_listing_entry {
  char *name;
  bool folder;
  int64_t size;
} comba_listing_entry;

typedef struct comba_listing {
  comba_listing_entry *entries;
  int64_t count, capacity;
} comba_listing;

comba_status comba_listing_read(comba_listing *listing, const char *path);
const comba_listing_entry *comba_listing_find(const comba_listing *listing, const char *name);
void comba_listing_free(comba_listing *listing);

/* Readers: fill in an empty dataset whose root is set. */
comba_status comba_dataset_open_folders(comba_dataset *dataset, const comba_listing *root);
comba_status comba_dataset_open_idx(comba_dataset *dataset, const comba_listing *root);
comba_status comba_dataset_open_cifar(comba_dataset *dataset, const comba_listing *root);
/* Whether the folder holds such files. */
bool comba_listing_is_idx(const comba_listing *root);
bool comba_listing_is_cifar(const comba_listing *root);

/* Copies `name`; an error if it is empty or no UTF-8. */
comba_status comba_dataset_add_class(comba_dataset *dataset, const char *name);
/* "0" to "count - 1". */
comba_status comba_dataset_add_numbered_classes(comba_dataset *dataset, int64_t count);
/* One class a line of root/file. */
comba_status comba_dataset_add_listed_classes(comba_dataset *dataset, const char *file);
/* Takes over `sample.name`, on failure too. */
comba_status comba_dataset_add_sample(comba_dataset *dataset, comba_sample sample);
/* Opens root/name and appends it to the record files; gives its size. */
comba_status comba_dataset_add_file(comba_dataset *dataset, const char *name, int64_t *size);
/* One picture of a record file, to be freed. */
comba_status comba_record_read(const comba_record_file *file, int64_t record, int channels, comba_image *image);
/* Groups the samples by split again, after splits were set. */
comba_status comba_dataset_index(comba_dataset *dataset);
/* See comba_dataset_load. */
comba_status comba_sample_load(const comba_dataset *dataset, const comba_sample *sample, uint8_t *pixels);
void comba_sample_path(const comba_dataset *dataset, const comba_sample *sample, char *path, size_t size);

#endif
