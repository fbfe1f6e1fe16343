/* A 64-bit hash (FNV-1a) that tells whether data changed between two runs. It is no protection against intent. */
#ifndef COMBA_DATA_FINGERPRINT_H
#define COMBA_DATA_FINGERPRINT_H

#include "core/status.h"

#define COMBA_FINGERPRINT_START 0xcbf29ce484222325u

static inline uint64_t comba_fingerprint_add(uint64_t hash, const void *data, size_t size) {
  const uint8_t *bytes = data;
  for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

/* The string with its zero byte, so that neighbours cannot be mistaken for one longer string. */
uint64_t comba_fingerprint_add_text(uint64_t hash, const char *text);
/* Eight bytes, the lowest first, on every machine. */
uint64_t comba_fingerprint_add_number(uint64_t hash, uint64_t number);
/* The size of an open file and what stands in 1024 blocks of 4 KiB spread evenly over it (all of it, if smaller). */
comba_status comba_fingerprint_add_file(uint64_t *hash, int descriptor, const char *name);

#endif
