/* The command line that both programs share, on argp: subcommands, common options, numbers with their range.
 *
 * Exit codes: 0 done, 1 the work failed, 2 the command line is wrong. Messages go to standard error as "PROGRAM COMMAND: ...". */
#ifndef COMBA_PROGRAM_OPTIONS_H
#define COMBA_PROGRAM_OPTIONS_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#include "comba.h"

enum { COMBA_EXIT_FAILURE = 1, COMBA_EXIT_USAGE = 2 };

typedef struct comba_command {
  const char *name, *summary;
  int (*run)(int argc, char **argv); /* argv[0] is "PROGRAM COMMAND" */
  const struct argp *argp;           /* what `run` parses with */
} comba_command;

/* Finds argv[1] in `commands` (the last has no name) and runs it; handles --help, --version, and for installation --manual and
 * --completion (program/manual.h). */
int comba_program_run(int argc, char **argv, const char *description, const comba_command *commands);

/* --device --precision --mode --threads --seed --json --quiet */
typedef struct comba_common_options {
  comba_device device;
  comba_precision precision;
  comba_mode mode;
  int threads; /* 0: all cores */
  uint64_t seed;
  bool json, quiet;
} comba_common_options;

/* For argp_child tables: the input is a comba_common_options, filled with defaults before. */
extern const struct argp comba_common_argp;
comba_common_options comba_common_defaults(void);
/* Sets the number of threads and gives library options; exits with a message if the device is not available. */
comba_options comba_common_apply(const comba_common_options *common);

/* --recompute --memory: for argp_child tables of what makes training plans; the input is a comba_memory_options, zero before. */
typedef struct comba_memory_options {
  comba_recompute recompute;
  double gib; /* 0: not given */
} comba_memory_options;
extern const struct argp comba_memory_argp;
void comba_memory_apply(const comba_memory_options *memory, comba_options *options);
extern const char *const comba_recompute_names[]; /* by comba_recompute; NULL at the end */

/* Parses the whole command line of a subcommand; wrong usage ends the process with COMBA_EXIT_USAGE. */
void comba_options_parse(const struct argp *argp, int argc, char **argv, void *input);

/* An option's value, or the end of the process with a message that names the option, the value and the range. */
int64_t comba_option_integer(const struct argp_state *state, const char *option, const char *text, int64_t minimum,
                             int64_t maximum);
double comba_option_number(const struct argp_state *state, const char *option, const char *text, double minimum,
                           double maximum);
/* Index of `text` in `choices` (NULL at the end). */
int comba_option_choice(const struct argp_state *state, const char *option, const char *text,
                        const char *const *choices);

/* "COMMAND: " comba_last_error(); returns COMBA_EXIT_FAILURE, or COMBA_EXIT_USAGE for COMBA_ERROR_ARGUMENT. */
int comba_report_failure(const char *command, comba_status status);

#endif
