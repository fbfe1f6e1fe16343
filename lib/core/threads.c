#include <omp.h>

#include "core/parallel.h"
#include "core/status.h"

enum { THREADS_MAX = 1024 };

int comba_threads(void) {
  return omp_get_max_threads();
}

comba_status comba_set_threads(int threads) {
  if (threads < 0 || threads > THREADS_MAX)
    return comba_fail(COMBA_ERROR_ARGUMENT, "threads is %d, expected 0 (all cores) to %d", threads, THREADS_MAX);
  omp_set_num_threads(threads ? threads : omp_get_num_procs());
  return COMBA_OK;
}
