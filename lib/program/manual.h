/* A program's manual page and its completion, from the option tables that --help prints. */
#ifndef COMBA_PROGRAM_MANUAL_H
#define COMBA_PROGRAM_MANUAL_H

#include "program/options.h"

/* troff with the macros of man, on standard output. */
void comba_manual_print(const char *program, const char *description, const comba_command *commands);
/* A script for bash, on standard output. */
void comba_completion_print(const char *program, const comba_command *commands);

#endif
