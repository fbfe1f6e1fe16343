/* Blocks of one kernel that wait for one another, for kernels that go through many small stages: a launch of each would end all that is under
 * way. The grid is launched as a whole (comba_cuda_launch_grid), so that all of its blocks are there at once.
 *
 * A block has STAGE_WARPS warps that work and one more, which waits for them and for the other blocks. Fences and polls are its own alone:
 * they would wait for what a thread has asked memory for, and so what workers fetch for the next stage can be under way meanwhile. */
#ifndef COMBA_CORE_CUDA_GRID_WAIT_H
#define COMBA_CORE_CUDA_GRID_WAIT_H

#include "core/cuda_kernel.h"

enum { STAGE_WARPS = 16, STAGE_WORKERS = STAGE_WARPS * 32, STAGE_THREADS = STAGE_WORKERS + 32 };
/* Barriers of a block, by number; those from HALVES on are for parts of it. */
enum { STAGE_BEGINS = 1, STAGE_ENDED, STAGE_INNER, STAGE_HALVES };

/* Of `threads`: waits for all of them, or tells those that wait. What was written before is there for who waits. */
static __device__ inline void wait_at(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
static __device__ inline void arrive_at(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
/* For the workers of a block */
static __device__ inline void wait_for_workers() {
  wait_at(STAGE_INNER, STAGE_WORKERS);
}
/* For workers: between the two a stage does what needs no other's results. */
static __device__ inline void end_stage() {
  arrive_at(STAGE_ENDED, STAGE_THREADS);
}
static __device__ inline void begin_stage() {
  wait_at(STAGE_BEGINS, STAGE_THREADS);
}

/* Arrivals since the process started, a multiple of the grid's blocks between launches: grids of one file's kernels have all the same number
 * of blocks, and the stream runs one after another. */
static __device__ unsigned long long grid_arrivals;

/* For one thread of each block */
struct grid_wait {
  unsigned long long target = 0;

  __device__ void arrive() {
    unsigned long long before;
    asm volatile("atom.release.gpu.global.add.u64 %0, [%1], 1;" : "=l"(before) : "l"(&grid_arrivals) : "memory");
    target = target ? target + gridDim.x : (before / gridDim.x + 1) * gridDim.x;
  }
  __device__ void wait() const {
    unsigned long long now;
    do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(&grid_arrivals) : "memory");
    while (now < target);
  }
};

#endif
