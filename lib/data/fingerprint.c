#include "data/fingerprint.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t comba_fingerprint_add_text(uint64_t hash, const char *text) {
  return comba_fingerprint_add(hash, text, strlen(text) + 1);
}

uint64_t comba_fingerprint_add_number(uint64_t hash, uint64_t number) {
  uint8_t bytes[8];
  for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(number >> 8 * i);
  return comba_fingerprint_add(hash, bytes, sizeof bytes);
}

comba_status comba_fingerprint_add_file(uint64_t *hash, int descriptor, const char *name) {
  enum { BLOCK = 4096, BLOCKS = 1024 };
  uint8_t block[BLOCK];
  struct stat information;
  if (fstat(descriptor, &information) != 0)
    return comba_fail(COMBA_ERROR_IO, "%s: cannot read its size: %s", name, strerror(errno));
  const int64_t size = information.st_size, whole = (size + BLOCK - 1) / BLOCK;
  const int64_t blocks = whole < BLOCKS ? whole : BLOCKS;
  uint64_t sum = comba_fingerprint_add_number(*hash, (uint64_t)size);
  for (int64_t i = 0; i < blocks; i++) {
    const int64_t place =
        blocks < 2 ? 0 : (whole - 1) / (blocks - 1) * i + (whole - 1) % (blocks - 1) * i / (blocks - 1);
    const ssize_t got = pread(descriptor, block, BLOCK, place * BLOCK);
    if (got < 0) return comba_fail(COMBA_ERROR_IO, "%s: cannot read: %s", name, strerror(errno));
    sum = comba_fingerprint_add(sum, block, (size_t)got);
  }
  *hash = sum;
  return COMBA_OK;
}
