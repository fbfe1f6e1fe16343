/* The subcommands of comba-vision, one a file, and what they share. */
#ifndef COMBA_VISION_VISION_H
#define COMBA_VISION_VISION_H

#include "program/options.h"
#include "program/presets.h"

int vision_train(int argc, char **argv);
int vision_eval(int argc, char **argv);
int vision_predict(int argc, char **argv);
int vision_forward(int argc, char **argv);

extern const struct argp vision_train_argp, vision_eval_argp, vision_predict_argp, vision_forward_argp;

extern const comba_preset vision_presets[];

/* Loads a vision model; another kind is an error. */
comba_status vision_load(comba_model **model, const char *directory, const comba_options *options);

#endif
