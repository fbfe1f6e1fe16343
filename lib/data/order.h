/* Random orders that a run can come back to: a pure function of the number of items, a seed and a stream. */
#ifndef COMBA_DATA_ORDER_H
#define COMBA_DATA_ORDER_H

#include <stdint.h>

#include "core/random.h"

/* Permutes order[0 .. count), whatever it holds (Fisher and Yates). */
static inline void comba_order_shuffle(int64_t *order, int64_t count, uint64_t seed, uint64_t stream) {
  for (int64_t i = count - 1; i > 0; i--) {
    const int64_t other = (int64_t)comba_random_below(seed, stream, (uint64_t)i, (uint64_t)i + 1);
    const int64_t item = order[i];
    order[i] = order[other];
    order[other] = item;
  }
}

#endif
