#include <omp.h>

#include "core/parallel.h"
#include "core/status.h"

enum { THREADS_MAX = 1024 };

int comba_threads(void) {
  return omp_get_max_threads();
}

int64_t comba_scratch_of(int64_t block, int64_t blocks) {
  return omp_get_num_threads() <= blocks ? omp_get_thread_num() : block;
}

comba_status comba_set_threads(int threads) {
  if (threads < 0 || threads > THREADS_MAX)
    return comba_fail(COMBA_ERROR_ARGUMENT, "threads is %d, expected 0 (all cores) to %d", threads, THREADS_MAX);
  omp_set_num_threads(threads ? threads : omp_get_num_procs());
  return COMBA_OK;
}
