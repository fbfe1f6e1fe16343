#include "program/version.h"

#include "comba.h"
#ifdef HAVE_CONFIG_H
#include "commit.h" /* made by make (lib/local.mk) */
#endif

#ifndef COMBA_COMMIT
#define COMBA_COMMIT ""
#endif

void comba_program_version(char *text, size_t size, const char *name) {
  if (*COMBA_COMMIT)
    snprintf(text, size, "%s %s (%s)", name, comba_version(), COMBA_COMMIT);
  else
    snprintf(text, size, "%s %s", name, comba_version());
}
