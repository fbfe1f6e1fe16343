#include "program/manual.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* Calls `visit` for every row of the table and of its children, headings (rows without a name) included. */
static void walk(const struct argp *argp, void (*visit)(const struct argp_option *option, const void *context),
                 const void *context) {
  if (!argp) return;
  for (const struct argp_option *o = argp->options; o && (o->name || o->doc); o++) visit(o, context);
  for (const struct argp_child *child = argp->children; child && child->argp; child++)
    walk(child->argp, visit, context);
}

/* ---- Manual page ---- */

/* Text in which troff sees no commands: a hyphen as it is typed, no line that begins with a dot or a quote. */
static void print_text(const char *text) {
  for (const char *c = text; *c; c++) {
    if (*c == '-' || *c == '\\') putchar('\\');
    if (c == text && (*c == '.' || *c == '\'')) fputs("\\&", stdout);
    if (*c == '\\')
      putchar('e');
    else
      putchar(*c == '\n' ? ' ' : *c);
  }
}

static void print_option(const struct argp_option *option, const void *context) {
  (void)context;
  if (!option->name) {
    printf(".PP\n");
    print_text(option->doc);
    putchar('\n');
    return;
  }
  printf(".TP\n\\fB\\-\\-");
  print_text(option->name);
  printf("\\fR");
  if (option->arg) {
    printf(" \\fI");
    print_text(option->arg);
    printf("\\fR");
  }
  putchar('\n');
  print_text(option->doc);
  putchar('\n');
}

void comba_manual_print(const char *program, const char *description, const comba_command *commands) {
  printf(".TH ");
  for (const char *c = program; *c; c++) putchar(toupper((unsigned char)*c));
  printf(" 1 \"\" \"comba %s\" \"User Commands\"\n.SH NAME\n", comba_version());
  print_text(program);
  printf(" \\- ");
  print_text(description);
  printf("\n.SH SYNOPSIS\n\\fB");
  print_text(program);
  printf("\\fR \\fICOMMAND\\fR [\\fIOPTION\\fR...]\n.SH COMMANDS\n");
  for (const comba_command *command = commands; command->name; command++) {
    printf(".SS ");
    print_text(command->name);
    putchar('\n');
    print_text(command->argp && command->argp->doc ? command->argp->doc : command->summary);
    putchar('\n');
    walk(command->argp, print_option, NULL);
  }
  printf(
      ".SH EXIT STATUS\n0 done, 1 the work failed, 2 the command line or a config is wrong; then one line on standard "
      "error says why.\n");
}

/* ---- Completion ---- */

static void print_name(const struct argp_option *option, const void *context) {
  (void)context;
  if (option->name) printf(" --%s", option->name);
}

typedef struct place {
  const char *program, *command;
} place;

/* What may follow the option: its words where the table has "one|another", the presets, else the name of a file. */
static void print_values(const struct argp_option *option, const void *context) {
  const place *p = context;
  if (!option->name || !option->arg) return;
  if (!strcmp(option->name, "preset")) {
    printf("    %s:--preset) words=$(%s info --presets 2>/dev/null | cut -d ' ' -f 1) ;;\n", p->command, p->program);
  } else if (strchr(option->arg, '|')) {
    printf("    %s:--%s) words='", p->command, option->name);
    for (const char *c = option->arg; *c; c++) putchar(*c == '|' ? ' ' : *c);
    printf("' ;;\n");
  }
}

void comba_completion_print(const char *program, const comba_command *commands) {
  char function[64];
  snprintf(function, sizeof function, "_%s", program);
  for (char *c = function; *c; c++)
    if (*c == '-') *c = '_';
  printf("# bash completion for %s\n%s() {\n  local current=${COMP_WORDS[COMP_CWORD]} words=\n"
         "  case ${COMP_WORDS[1]}:${COMP_WORDS[COMP_CWORD - 1]} in\n",
         program, function);
  for (const comba_command *command = commands; command->name; command++)
    walk(command->argp, print_values, &(place){program, command->name});
  printf("  esac\n  if [ \"$COMP_CWORD\" = 1 ]; then\n    words='");
  for (const comba_command *command = commands; command->name; command++) printf("%s ", command->name);
  printf("--help --version'\n  elif [ -z \"$words\" ] && [[ $current == -* ]]; then\n    case ${COMP_WORDS[1]} in\n");
  for (const comba_command *command = commands; command->name; command++) {
    printf("      %s) words='--help", command->name);
    walk(command->argp, print_name, NULL);
    printf("' ;;\n");
  }
  printf("    esac\n  fi\n"
         "  if [ -n \"$words\" ]; then\n    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n"
         "  else\n    mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n  fi\n}\n"
         "complete -o filenames -F %s %s\n",
         function, program);
}
