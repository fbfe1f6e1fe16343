/* Return codes and the message that goes with a failure.
 *
 * Every function that can fail returns comba_status. On failure it has called comba_fail(), which stores one message
 * for the calling thread: what was wrong (file, field or tensor, the value found) and what was expected. Library code
 * never prints and never exits. */
#ifndef COMBA_CORE_STATUS_H
#define COMBA_CORE_STATUS_H

#include "comba.h"

/* Stores the message for this thread and returns `status`, so that a failure is one line:
 *   return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has rank %d, expected %d", path, name, rank, expected); */
comba_status comba_fail(comba_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts `prefix: ` in front of the stored message, for a caller that knows what the callee did not (a path, a field). */
comba_status comba_fail_in(comba_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "out of memory: SIZE bytes for WHAT". */
comba_status comba_fail_memory(size_t size, const char *what);

/* Evaluates `call` once; a failure goes to the function's single cleanup label with the code in `status`. */
#define COMBA_TRY(call)                                                                                                \
  do {                                                                                                                 \
    status = (call);                                                                                                   \
    if (status != COMBA_OK) goto cleanup;                                                                              \
  } while (0)

/* Zeroed memory aligned to 64 bytes, or NULL with the message stored. Release with free(). size 0 gives a valid pointer. */
void *comba_allocate(size_t size, const char *what);

#endif
