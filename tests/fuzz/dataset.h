/* The data set in the current folder, read to the last picture. */
#ifndef COMBA_TESTS_FUZZ_DATASET_H
#define COMBA_TESTS_FUZZ_DATASET_H

#include "data/dataset.h"
#include "fuzz.h"

static inline void fuzz_dataset(void) {
  enum { SIDE = 8, CHANNELS = 3 };
  comba_dataset *dataset = NULL;
  comba_prepare_options options;
  uint8_t pixels[SIDE * SIDE * CHANNELS];
  if (comba_dataset_open(&dataset, ".") != COMBA_OK) return;
  comba_prepare_options_default(&options, dataset);
  options.side = SIDE;
  options.channels = CHANNELS;
  options.cache_size = 0;
  if (comba_dataset_prepare(dataset, &options) == COMBA_OK) {
    const int64_t count = comba_dataset_count(dataset, COMBA_SPLIT_ALL);
    for (int64_t i = 0; i < count; i++) {
      const int32_t label = comba_dataset_label(dataset, COMBA_SPLIT_ALL, i);
      if (label < 0 || label >= comba_dataset_classes(dataset)) abort();
      comba_dataset_load(dataset, COMBA_SPLIT_ALL, i, pixels);
    }
    comba_dataset_split(dataset, 0.5, 1);
  }
  comba_dataset_free(dataset);
}

#endif
