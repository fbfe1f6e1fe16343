/* CIFAR-10's class names and one batch of records. */
#include "dataset.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const size_t names = fuzz_first_size(data, size);
  if (size == 0) return 0;
  fuzz_write("batches.meta.txt", data + 1, names);
  fuzz_write("data_batch_1.bin", data + 1 + names, size - 1 - names);
  fuzz_dataset();
  return 0;
}
