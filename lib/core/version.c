#ifdef HAVE_CONFIG_H
#include "config.h"
#endif
#include "comba.h"

#ifndef PACKAGE_VERSION
#define PACKAGE_VERSION "unknown" /* compiled without configure */
#endif

const char *comba_version(void) {
  return PACKAGE_VERSION;
}
