/* The memory that a backend's operands live in: the host's own, or a GPU's, which the host reaches through copies.
 *
 * Work on a device is queued. write, zero and the kernels run in the order in which they were asked for; read waits for all of it,
 * wait for some, and these are where an error of the device shows. */
#ifndef COMBA_CORE_DEVICE_MEMORY_H
#define COMBA_CORE_DEVICE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

#include "core/status.h"

typedef struct comba_device_memory {
  bool is_host;    /* the host may read and write it directly */
  bool is_planned; /* addresses alone, for plans that are described and never run */
  /* Zeroed, aligned to 64 bytes or more; NULL with the message stored. */
  void *(*allocate)(size_t bytes, const char *what);
  void *(*allocate_weights)(size_t bytes, const char *what); /* likewise, for what matrix products read */
  void (*release)(void *data);                               /* NULL is released as well */
  comba_status (*write)(void *to, const void *from_host, size_t bytes);
  /* The same beside the work that was queued since the last such copy: what is queued from now on sees it, and a caller who takes
   * two places by turns overwrites nothing that is still to be read. `from_host` may change as soon as this returns. */
  comba_status (*write_ahead)(void *to, const void *from_host, size_t bytes);
  comba_status (*read)(void *to_host, const void *from, size_t bytes);
  /* A copy that is queued like a kernel. It goes to memory of allocate_shared and is there once wait has returned for a mark that
   * was set after it; work that is queued after the mark goes on. There are two marks, 0 and 1. */
  comba_status (*read_behind)(void *to_shared, const void *from, size_t bytes);
  comba_status (*mark)(int which);
  comba_status (*wait)(int which);
  void *(*allocate_shared)(size_t bytes, const char *what);
  void (*release_shared)(void *data);
  comba_status (*zero)(void *data, size_t bytes);
  size_t (*available)(void); /* bytes that can still be allocated; NULL: not known */
} comba_device_memory;

extern const comba_device_memory comba_host_memory;
comba_device_memory comba_planned_memory(size_t (*available)(void));

#endif
