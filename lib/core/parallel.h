/* Loops over all threads whose results do not depend on how many there are.
 *
 * Independent iterations: plain `#pragma omp parallel for`. Sums across iterations: give each block of rows its own
 * partial sum, with blocks from comba_blocks (a function of the problem alone), then add the partial sums in block order. */
#ifndef COMBA_CORE_PARALLEL_H
#define COMBA_CORE_PARALLEL_H

#include <stdint.h>

enum { COMBA_BLOCKS = 64 }; /* the most blocks that one loop is cut into */

/* Number of blocks for `count` rows, at least `minimum` rows a block (where there are that many). */
static inline int64_t comba_blocks(int64_t count, int64_t minimum) {
  const int64_t blocks = count / (minimum > 1 ? minimum : 1);
  return blocks < 1 ? 1 : (blocks > COMBA_BLOCKS ? COMBA_BLOCKS : blocks);
}

/* First row of block `block`; that of block `blocks` is `count`. */
static inline int64_t comba_block_start(int64_t count, int64_t blocks, int64_t block) {
  return count * block / blocks;
}

/* Threads that the next parallel loop will use. */
int comba_threads(void);

/* Inside iteration `block` of a parallel loop of `blocks`: which of as many pieces of scratch is free for it. That of its
 * thread, whose last iteration has left it in the core's cache; the iteration's own where there are more threads than pieces.
 * What is there may depend on the number of threads, so an iteration writes before it reads. */
int64_t comba_scratch_of(int64_t block, int64_t blocks);

#endif
