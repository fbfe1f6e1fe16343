/* What --version says. */
#ifndef COMBA_PROGRAM_VERSION_H
#define COMBA_PROGRAM_VERSION_H

#include <stdio.h>

/* "NAME VERSION (COMMIT)", without the commit where it was not known when this was built. */
void comba_program_version(char *text, size_t size, const char *name);

#endif
