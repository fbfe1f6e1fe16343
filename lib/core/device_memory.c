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

const comba_device_memory comba_host_memory = {
    .is_host = true,
    .allocate = comba_allocate,
    .allocate_weights = comba_allocate,
    .release = free,
    .write = copy,
    .write_ahead = copy,
    .read = copy,
    .zero = zero,
};
