/* Labelled pictures for classifiers. A folder is recognised by what is in it:
 *   - class folders with PNG or JPEG files (every file is taken for a picture, dot-files are ignored), either at once or inside
 *     train/ and val/ (also validation/) or test/;
 *   - IDX files: train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k-; classes are numbers, or the lines of
 *     classes.txt;
 *   - CIFAR's binary batches: data_batch_N.bin, test_batch.bin; classes are the lines of batches.meta.txt, or numbers.
 * Classes of folders are sorted bytewise, as are the files of a class.
 *
 * Use: open, then optionally match_classes, then read_split or prepare and split, and then load from any number of threads. */
#ifndef COMBA_DATA_DATASET_H
#define COMBA_DATA_DATASET_H

#include <stdbool.h>

#include "data/resize.h"

typedef struct comba_dataset comba_dataset;

typedef enum comba_split {
  COMBA_SPLIT_TRAIN = 0,
  COMBA_SPLIT_VALIDATION,
  COMBA_SPLIT_TEST,
  COMBA_SPLIT_ALL /* the three of them */
} comba_split;

/* "train", "validation", "test", "all". */
const char *comba_split_name(comba_split split);

/* Lists the data and checks all that can be checked without decoding: sizes, labels, empty classes. A flat folder of class
 * folders is one training split. Pictures are not read yet. */
comba_status comba_dataset_open(comba_dataset **dataset, const char *path);
void comba_dataset_free(comba_dataset *dataset);

/* What the data itself has: channels 1 or 3; the side of its pictures, 0 for folders, where it varies. */
int comba_dataset_channels(const comba_dataset *dataset);
int64_t comba_dataset_side(const comba_dataset *dataset);
/* Hash of the names, sizes and labels of all files and of samples of their content (IDX, CIFAR). The split has no part. */
uint64_t comba_dataset_fingerprint(const comba_dataset *dataset);

int64_t comba_dataset_classes(const comba_dataset *dataset);
const char *comba_dataset_class_name(const comba_dataset *dataset, int64_t label);
/* Numbers the classes as `names` does, by name. A class of the data that is not among them is an error; the reverse is
 * not. */
comba_status comba_dataset_match_classes(comba_dataset *dataset, const char *const *names, int64_t count);

/* ---- Splits ---- */

/* Moves a part of the training pictures, in (0, 1), to the validation split, which must be empty: round(fraction * n) of each
 * class of n, and at least one where n > 1, chosen by the seed. */
comba_status comba_dataset_split(comba_dataset *dataset, double fraction, uint64_t seed);
/* One line a picture: its path, a tab, and train, validation, test or skipped. Tab, line feed and backslash in a path are
 * written \t, \n and \\. Reading fails where the lines do not name the data's pictures in the data's order; pictures
 * that it calls skipped belong to no split. */
comba_status comba_dataset_write_split(const comba_dataset *dataset, const char *path);
comba_status comba_dataset_read_split(comba_dataset *dataset, const char *path);

/* ---- Pictures ---- */

typedef struct comba_prepare_options {
  int64_t side; /* of the square pictures that load gives */
  int channels; /* 1 or 3 */
  comba_fit fit;
  comba_split split;       /* which pictures */
  bool training;           /* there must be two classes, each with a training picture */
  bool skip_bad;           /* pictures that cannot be decoded are skipped and listed; otherwise the first is an error */
  double max_bad_fraction; /* more than this part, and more than 10, are an error all the same */
  int threads;
  size_t cache_size; /* bytes */
} comba_prepare_options;

/* crop, all splits, skip_bad, 5 %, one thread, 2 GiB; the side and the channels are the data's own (side 0 for folders). */
void comba_prepare_options_default(comba_prepare_options *options, const comba_dataset *dataset);

/* Decodes every picture of the split once. If all of them fit into the cache they stay in memory, otherwise only the verdict
 * stays and load decodes again. Which pictures are skipped depends on the files alone. Pictures of other splits can be
 * loaded too, but have not been tried. May be called once. */
comba_status comba_dataset_prepare(comba_dataset *dataset, const comba_prepare_options *options);
int64_t comba_dataset_skipped(const comba_dataset *dataset);
/* Path and reason of a skipped picture, in the data's order; strings of the dataset. */
void comba_dataset_skipped_entry(const comba_dataset *dataset, int64_t index, const char **path, const char **reason);

int64_t comba_dataset_count(const comba_dataset *dataset, comba_split split);
/* The validation split if it has pictures, else the test split. */
comba_split comba_dataset_held_out(const comba_dataset *dataset);
int32_t comba_dataset_label(const comba_dataset *dataset, comba_split split, int64_t index);
/* The path below the data's folder ("train/cat/7.png"), or file and record ("test_batch.bin:17"), cut to `size` bytes. */
void comba_dataset_path(const comba_dataset *dataset, comba_split split, int64_t index, char *path, size_t size);
/* `pixels` receives (side, side, channels). After prepare; may be called by several threads. */
comba_status comba_dataset_load(const comba_dataset *dataset, comba_split split, int64_t index, uint8_t *pixels);
/* Mean and standard deviation of each channel over a split, for pixels in [0, 1]; exact sums, so the order is of no
 * matter. */
comba_status comba_dataset_statistics(comba_dataset *dataset, comba_split split, double mean[3], double deviation[3]);

#endif
