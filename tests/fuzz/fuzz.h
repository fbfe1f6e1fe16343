/* What the fuzz targets share. A target is one reader of files: LLVMFuzzerTestOneInput gets the bytes of a damaged file, and
 * whatever it makes of them, nothing may crash, leak or hang. libFuzzer has the main function. */
#ifndef COMBA_TESTS_FUZZ_H
#define COMBA_TESTS_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Targets run in an empty folder, where readers of files find what they write here. */
static inline void fuzz_write(const char *name, const void *data, size_t size) {
  FILE *file = fopen(name, "wb");
  if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) abort();
}

/* Two files in one input: the first byte, at most what is left, is the size of the first file. */
static inline size_t fuzz_first_size(const uint8_t *data, size_t size) {
  return size == 0 ? 0 : (data[0] < size ? data[0] : size - 1);
}

#endif
