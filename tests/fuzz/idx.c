/* MNIST's pair of files: labels, then pictures. */
#include "dataset.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const size_t labels = fuzz_first_size(data, size);
  if (size == 0) return 0;
  fuzz_write("train-labels-idx1-ubyte", data + 1, labels);
  fuzz_write("train-images-idx3-ubyte", data + 1 + labels, size - 1 - labels);
  fuzz_dataset();
  return 0;
}
