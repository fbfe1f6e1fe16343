#ifndef COMBA_DATA_READ_AT_H
#define COMBA_DATA_READ_AT_H

#include "core/status.h"

/* Reads exactly `size` bytes at `offset` of an open file; `name` is for messages. Data that stays in files is read so and not
 * mapped: a file that shrinks while it is in use gives an error and not a signal. May be called by several threads. */
comba_status comba_read_at(int descriptor, const char *name, void *data, size_t size, int64_t offset);

#endif
