#include "core/status.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MESSAGE_SIZE = 2048, PREFIX_SIZE = 512 };
enum { LARGE_PAGE = 2 << 20, LARGE_SIZE = 2 * LARGE_PAGE }; /* bytes */
static _Thread_local char message[MESSAGE_SIZE];

const char *comba_last_error(void) {
  return message[0] ? message : "no error";
}

const char *comba_status_name(comba_status status) {
  switch (status) {
  case COMBA_OK: return "ok";
  case COMBA_ERROR_ARGUMENT: return "bad argument";
  case COMBA_ERROR_FORMAT: return "bad format";
  case COMBA_ERROR_IO: return "input or output failed";
  case COMBA_ERROR_MEMORY: return "out of memory";
  case COMBA_ERROR_UNSUPPORTED: return "not supported";
  case COMBA_ERROR_DEVICE: return "device error";
  case COMBA_ERROR_NONFINITE: return "not finite";
  }
  return "unknown status";
}

comba_status comba_fail(comba_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}

comba_status comba_fail_in(comba_status status, const char *format, ...) {
  char prefix[PREFIX_SIZE];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(prefix, sizeof prefix, format, arguments);
  va_end(arguments);
  const size_t used = strlen(prefix) + 2;
  memmove(message + used, message, sizeof message - used);
  message[sizeof message - 1] = 0;
  memcpy(message, prefix, used - 2);
  memcpy(message + used - 2, ": ", 2);
  return status;
}

comba_status comba_fail_memory(size_t size, const char *what) {
  return comba_fail(COMBA_ERROR_MEMORY, "out of memory: %zu bytes for %s", size, what);
}

/* Arenas and weights begin with a large page and are asked for in such: fewer translations are missed, and the first touch of a
 * gigabyte is 500 faults in place of 250,000. The advice may be refused. */
void *comba_allocate(size_t size, const char *what) {
  const size_t rounded = size ? (size + 63) & ~(size_t)63 : 64;
  const bool large = size >= LARGE_SIZE;
  void *memory = NULL;
  if (rounded < size || posix_memalign(&memory, large ? LARGE_PAGE : 64, rounded)) {
    comba_fail_memory(size, what);
    return NULL;
  }
#ifdef MADV_HUGEPAGE
  if (large) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
  return memset(memory, 0, rounded);
}
