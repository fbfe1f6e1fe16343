/* The subcommands of comba-lm, one a file, and what they share. */
#ifndef COMBA_LM_LM_H
#define COMBA_LM_LM_H

#include "program/options.h"
#include "program/presets.h"

int lm_train(int argc, char **argv);
int lm_eval(int argc, char **argv);
int lm_generate(int argc, char **argv);
int lm_forward(int argc, char **argv);
int lm_convert(int argc, char **argv);

extern const struct argp lm_train_argp, lm_eval_argp, lm_generate_argp, lm_forward_argp, lm_convert_argp;

extern const comba_preset lm_presets[];

/* Loads a language model; another kind is an error. */
comba_status lm_load(comba_model **model, const char *directory, const comba_options *options);

#endif
