/* The `info` subcommand, the same in both programs. */
#ifndef COMBA_PROGRAM_INFO_H
#define COMBA_PROGRAM_INFO_H

#include "program/options.h"
#include "program/presets.h"

extern const struct argp comba_info_argp;
/* `load` opens a trained model of the program's kind. */
int comba_info_run(int argc, char **argv, const comba_preset *presets,
                   comba_status (*load)(comba_model **model, const char *directory, const comba_options *options));

#endif
