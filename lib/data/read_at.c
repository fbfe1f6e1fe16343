#include "data/read_at.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

comba_status comba_read_at(int descriptor, const char *name, void *data, size_t size, int64_t offset) {
  for (size_t done = 0; done < size;) {
    const ssize_t got = pread(descriptor, (uint8_t *)data + done, size - done, offset + (int64_t)done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return comba_fail(COMBA_ERROR_IO, "%s: cannot read: %s", name, strerror(errno));
    if (got == 0)
      return comba_fail(COMBA_ERROR_IO, "%s: ends at byte %lld, expected at least %lld", name,
                        (long long)(offset + (int64_t)done), (long long)(offset + (int64_t)size));
    done += (size_t)got;
  }
  return COMBA_OK;
}
