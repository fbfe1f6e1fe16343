/* `forward`: one batch from a safetensors file through a model; logits, loss and gradients into another. */
#ifndef COMBA_PROGRAM_FORWARD_H
#define COMBA_PROGRAM_FORWARD_H

#include <stdbool.h>

#include "model/safetensors.h"
#include "program/options.h"

typedef struct comba_forward_options {
  comba_common_options common;
  const char *model, *input, *output;
  bool gradients;
} comba_forward_options;

/* The command's options, for a `struct argp` that adds what its files hold as the documentation. */
extern const struct argp_child comba_forward_children[];

/* Parses with `argp` and runs. */
int comba_forward_run(int argc, char **argv, const struct argp *argp,
                      comba_status (*run)(const comba_forward_options *options));

/* Runs the batch and writes float32 `logits`, `loss` (1) if `has_loss`, and with --gradients one `grad.NAME` a weight. */
comba_status comba_forward_write(comba_model *model, const comba_batch *batch, bool has_loss,
                                 const comba_forward_options *options);

/* The tensor NAME of `file` as int32 of rank `rank`; to be freed. */
comba_status comba_forward_integers(const comba_safetensors *file, const char *name, int rank, const int64_t **shape,
                                    int32_t **values);
/* The same for floats. */
comba_status comba_forward_floats(const comba_safetensors *file, const char *name, int rank, const int64_t **shape,
                                  float **values);

#endif
