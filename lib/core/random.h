/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
 *
 * A draw is a pure function of (seed, stream, counter), so results do not depend on the order of work or the number of
 * threads, and a resumed run needs no generator state beyond its step. */
#ifndef COMBA_CORE_RANDOM_H
#define COMBA_CORE_RANDOM_H

#include <math.h>
#include <stdint.h>

#include "core/host_device.h"

typedef struct comba_random4 {
  uint32_t value[4];
} comba_random4;

static inline COMBA_HOST_DEVICE comba_random4 comba_random_bits(uint64_t seed, uint64_t stream, uint64_t counter) {
  uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const comba_random4 words = {{c0, c1, c2, c3}};
  return words;
}

/* Uniform in (0, 1): never 0, so that its logarithm is finite. */
static inline COMBA_HOST_DEVICE double comba_random_unit(uint32_t bits) {
  return ((double)bits + 0.5) * (1.0 / 4294967296.0);
}

/* The smallest word whose draw is at least `rate`. */
static inline uint32_t comba_random_threshold(double rate) {
  const double word = ceil(rate * 4294967296.0 - 0.5);
  return word < 4294967295.0 ? (uint32_t)word : UINT32_MAX;
}

/* Uniform in (0, 1) for element `index`. */
static inline COMBA_HOST_DEVICE double comba_random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  return comba_random_unit(comba_random_bits(seed, stream, index >> 2).value[index & 3]);
}

/* N(0, 1) for element `index` (Box-Muller; two words a draw). */
static inline COMBA_HOST_DEVICE double comba_random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
  const comba_random4 r = comba_random_bits(seed, stream, index);
  return sqrt(-2.0 * log(comba_random_unit(r.value[0]))) * cos(6.283185307179586 * comba_random_unit(r.value[1]));
}

/* Integer in [0, n) for element `index`; n >= 1. The bias is below n / 2^64. */
static inline COMBA_HOST_DEVICE uint64_t comba_random_below(uint64_t seed, uint64_t stream, uint64_t index,
                                                            uint64_t n) {
  const comba_random4 r = comba_random_bits(seed, stream, index);
  const uint64_t bits = (uint64_t)r.value[0] << 32 | r.value[1];
  return (uint64_t)(((unsigned __int128)bits * n) >> 64);
}

/* A stream number from a name (FNV-1a), so that a parameter's initial value depends on its name and not on its place. */
static inline uint64_t comba_random_stream(const char *name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 0x100000001b3u;
  return hash;
}

#endif
