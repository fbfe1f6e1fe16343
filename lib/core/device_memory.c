#include "core/device_memory.h"

#include <stdlib.h>
#include <string.h>

static comba_status copy(void *to, const void *from, size_t bytes) {
  memcpy(to, from, bytes);
  return COMBA_OK;
}

static comba_status zero(void *data, size_t bytes) {
  memset(data, 0, bytes);
  return COMBA_OK;
}

static comba_status no_mark(int which) {
  (void)which;
  return COMBA_OK;
}

/* ---- Planned --------------------------------------------------------------------------------------------------------- */

static void *promise(size_t bytes, const char *what) {
  static char place;
  (void)bytes;
  (void)what;
  return &place;
}

static void forgo(void *data) {
  (void)data;
}

static comba_status refuse_copy(void *to, const void *from, size_t bytes) {
  (void)to;
  (void)from;
  (void)bytes;
  return comba_fail(COMBA_ERROR_UNSUPPORTED, "a planned model has no memory");
}

static comba_status refuse_zero(void *data, size_t bytes) {
  return refuse_copy(data, data, bytes);
}

comba_device_memory comba_planned_memory(size_t (*available)(void)) {
  return (comba_device_memory){.is_planned = true,
                               .allocate = promise,
                               .allocate_weights = promise,
                               .release = forgo,
                               .write = refuse_copy,
                               .write_ahead = refuse_copy,
                               .read = refuse_copy,
                               .read_behind = refuse_copy,
                               .mark = no_mark,
                               .wait = no_mark,
                               .allocate_shared = comba_allocate,
                               .release_shared = free,
                               .zero = refuse_zero,
                               .available = available};
}

const comba_device_memory comba_host_memory = {
    .is_host = true,
    .allocate = comba_allocate,
    .allocate_weights = comba_allocate,
    .release = free,
    .write = copy,
    .write_ahead = copy,
    .read = copy,
    .read_behind = copy,
    .mark = no_mark,
    .wait = no_mark,
    .allocate_shared = comba_allocate,
    .release_shared = free,
    .zero = zero,
};
