/* split.tsv beside a data set of four pictures, two of whose names need escapes. */
#include <sys/stat.h>

#include "data/dataset.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static comba_dataset *dataset;
  if (!dataset) {
    mkdir("data", 0700);
    mkdir("data/a", 0700);
    mkdir("data/b", 0700);
    fuzz_write("data/a/1", "", 0);
    fuzz_write("data/a/2\t3", "", 0);
    fuzz_write("data/b/4", "", 0);
    fuzz_write("data/b/5\\\n6", "", 0);
    if (comba_dataset_open(&dataset, "data") != COMBA_OK) abort();
  }
  fuzz_write("split.tsv", data, size);
  if (comba_dataset_read_split(dataset, "split.tsv") != COMBA_OK) return 0;
  if (comba_dataset_count(dataset, COMBA_SPLIT_ALL) > 4) abort();
  if (comba_dataset_write_split(dataset, "again.tsv") != COMBA_OK) abort();
  if (comba_dataset_read_split(dataset, "again.tsv") != COMBA_OK) abort();
  return 0;
}
