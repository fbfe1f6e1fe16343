#include "program/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/backend.h"
#include "program/manual.h"
#include "program/version.h"

static void print_commands(FILE *file, const char *program, const char *description, const comba_command *commands) {
  fprintf(file, "Usage: %s COMMAND [OPTION...]\n%s\n\nCommands:\n", program, description);
  for (const comba_command *command = commands; command->name; command++)
    fprintf(file, "  %-10s %s\n", command->name, command->summary);
  fprintf(file, "\n'%s COMMAND --help' explains a command.\n", program);
}

int comba_program_run(int argc, char **argv, const char *description, const comba_command *commands) {
  const char *slash = strrchr(argv[0], '/'), *program = slash ? slash + 1 : argv[0];
  if (!strncmp(program, "lt-", 3)) program += 3; /* libtool's name of a program that is not installed yet */
  if (argc < 2) {
    print_commands(stderr, program, description, commands);
    return COMBA_EXIT_USAGE;
  }
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-?") || !strcmp(argv[1], "help")) {
    print_commands(stdout, program, description, commands);
    return 0;
  }
  static char name[256], version[320];
  if (!strcmp(argv[1], "--version")) {
    comba_program_version(version, sizeof version, program);
    puts(version);
    return 0;
  }
  if (!strcmp(argv[1], "--manual")) {
    comba_manual_print(program, description, commands);
    return 0;
  }
  if (!strcmp(argv[1], "--completion")) {
    comba_completion_print(program, commands);
    return 0;
  }
  for (const comba_command *command = commands; command->name; command++) {
    if (strcmp(argv[1], command->name)) continue;
    snprintf(name, sizeof name, "%s %s", program, command->name);
    comba_program_version(version, sizeof version, program);
    argp_program_version = version;
    argp_err_exit_status = COMBA_EXIT_USAGE;
    argv[1] = name;
    const int code = command->run(argc - 1, argv + 1);
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    fprintf(stderr, "%s: standard output cannot be written\n", name);
    return COMBA_EXIT_FAILURE;
  }
  fprintf(stderr, "%s: there is no command '%s'; '%s --help' lists them\n", program, argv[1], program);
  return COMBA_EXIT_USAGE;
}

int64_t comba_option_integer(const struct argp_state *state, const char *option, const char *text, int64_t minimum,
                             int64_t maximum) {
  char *end = NULL;
  errno = 0;
  const long long value = strtoll(text, &end, 10);
  if (errno || end == text || *end || value < minimum || value > maximum)
    argp_error(state, "%s is '%s', expected a whole number from %lld to %lld", option, text, (long long)minimum,
               (long long)maximum);
  return value;
}

double comba_option_number(const struct argp_state *state, const char *option, const char *text, double minimum,
                           double maximum) {
  char *end = NULL;
  const double value = strtod(text, &end);
  if (end == text || *end || !isfinite(value) || value < minimum || value > maximum)
    argp_error(state, "%s is '%s', expected a number from %g to %g", option, text, minimum, maximum);
  return value;
}

int comba_option_choice(const struct argp_state *state, const char *option, const char *text,
                        const char *const *choices) {
  char list[512] = "";
  for (int i = 0; choices[i]; i++) {
    if (!strcmp(text, choices[i])) return i;
    if (strlen(list) + strlen(choices[i]) + 3 < sizeof list) {
      if (i) strcat(list, ", ");
      strcat(list, choices[i]);
    }
  }
  argp_error(state, "%s is '%s', expected one of %s", option, text, list);
  return 0;
}

enum { DEVICE = 0x1000, PRECISION, MODE, THREADS, SEED, JSON, QUIET };
static const struct argp_option common_options[] = {
    {0, 0, 0, 0, "Common:", 90},
    {"device", DEVICE, "cpu|cuda|auto", 0,
     "Where to compute; auto takes a GPU if there is one that works (default auto)", 0},
    {"precision", PRECISION, "auto|float32|bf16", 0,
     "Type of activations and of the weights in products; auto is bf16 on a GPU, float32 on the CPU (default auto)", 0},
    {"mode", MODE, "auto|chunk|recurrent", 0,
     "How recurrences run: over chunks of tokens, token by token, or the faster for the shape (default auto)", 0},
    {"threads", THREADS, "N", 0, "CPU threads (default: all cores); results do not depend on it", 0},
    {"seed", SEED, "N", 0, "Of initial weights, data order, augmentation, dropout and sampling (default 42)", 0},
    {"json", JSON, 0, 0, "Print one JSON object instead of text", 0},
    {"quiet", QUIET, 0, 0, "No progress, results only", 0},
    {0}};

static error_t parse_common(int key, char *argument, struct argp_state *state) {
  static const char *const devices[] = {"auto", "cpu", "cuda", NULL};        /* order of comba_device */
  static const char *const precisions[] = {"auto", "float32", "bf16", NULL}; /* order of comba_precision */
  static const char *const modes[] = {"auto", "chunk", "recurrent", NULL};
  comba_common_options *common = state->input;
  switch (key) {
  case DEVICE: common->device = (comba_device)comba_option_choice(state, "--device", argument, devices); break;
  case PRECISION:
    common->precision = (comba_precision)comba_option_choice(state, "--precision", argument, precisions);
    break;
  case MODE: common->mode = (comba_mode)comba_option_choice(state, "--mode", argument, modes); break;
  case THREADS: common->threads = (int)comba_option_integer(state, "--threads", argument, 0, 1024); break;
  case SEED: common->seed = (uint64_t)comba_option_integer(state, "--seed", argument, 0, INT64_MAX); break;
  case JSON: common->json = true; break;
  case QUIET: common->quiet = true; break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

const struct argp comba_common_argp = {.options = common_options, .parser = parse_common};

comba_common_options comba_common_defaults(void) {
  return (comba_common_options){.seed = 42};
}

comba_options comba_common_apply(const comba_common_options *common) {
  comba_options options;
  comba_options_default(&options);
  options.device = common->device;
  options.precision = common->precision;
  options.mode = common->mode;
  options.seed = common->seed;
  comba_set_threads(common->threads);
  const char *why = options.device == COMBA_DEVICE_AUTO ? comba_backend_unused_gpu() : NULL;
  if (why) fprintf(stderr, "computing on the CPU: %s\n", why);
  return options;
}

const char *const comba_recompute_names[] = {"auto", "none", "light", "block", NULL};

enum { RECOMPUTE = 0x3000, MEMORY };
static const struct argp_option memory_options[] = {
    {0, 0, 0, 0, "Memory:", 80},
    {"recompute", RECOMPUTE, "auto|none|light|block", 0,
     "What backward computes again instead of keeping it: nothing, the results of cheap operators (norms, activations, "
     "convolutions) and on a GPU states of the delta rule, or whole layers; the results are the same bits. auto: the "
     "least that fits into --memory, or into what the GPU has free, in as many layers as must be; on the CPU without "
     "--memory none (default auto)",
     0},
    {"memory", MEMORY, "GIB", 0, "Memory that training may take (default: what the GPU has free)", 0},
    {0}};

static error_t parse_memory(int key, char *argument, struct argp_state *state) {
  comba_memory_options *memory = state->input;
  switch (key) {
  case RECOMPUTE:
    memory->recompute = (comba_recompute)comba_option_choice(state, "--recompute", argument, comba_recompute_names);
    break;
  case MEMORY: memory->gib = comba_option_number(state, "--memory", argument, 0.001, 1e6); break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

const struct argp comba_memory_argp = {.options = memory_options, .parser = parse_memory};

void comba_memory_apply(const comba_memory_options *memory, comba_options *options) {
  options->recompute = memory->recompute;
  options->memory = (uint64_t)(memory->gib * 1024 * 1024 * 1024);
}

void comba_options_parse(const struct argp *argp, int argc, char **argv, void *input) {
  if (argp_parse(argp, argc, argv, 0, NULL, input)) exit(COMBA_EXIT_USAGE);
}

int comba_report_failure(const char *command, comba_status status) {
  fprintf(stderr, "%s: %s\n", command, comba_last_error());
  return status == COMBA_ERROR_ARGUMENT ? COMBA_EXIT_USAGE : COMBA_EXIT_FAILURE;
}
