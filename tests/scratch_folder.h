/* A folder that a test may fill, and what is said of a status. */
#ifndef COMBA_TESTS_SCRATCH_FOLDER_H
#define COMBA_TESTS_SCRATCH_FOLDER_H

#include <stddef.h>

#include "core/status.h"

/* A checked fixture: makes an empty folder below /tmp, removes it with all that is in it. */
void scratch_setup(void);
void scratch_teardown(void);

const char *scratch_root(void);
/* The path of NAME in it; valid until the fourth call after this. */
const char *at(const char *name);
/* Writes the file NAME and makes the folders above it. */
void put(const char *name, const void *data, size_t size);

void expect_ok(comba_status status);
/* The status, and a message that has `part`. */
void expect_failure(comba_status status, comba_status expected, const char *part);

#endif
