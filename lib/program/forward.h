/* `forward`: one batch from a safetensors file through a model; logits, loss and gradients into another. */
#ifndef COMBA_PROGRAM_FORWARD_H
#define COMBA_PROGRAM_FORWARD_H

#include <stdbool.h>

#include "comba.h"
#include "model/safetensors.h"

/* Runs the batch and writes float32 `logits`, `loss` (1) if `has_loss`, and with `gradients` one `grad.NAME` a weight. */
comba_status comba_forward_write(comba_model *model, const comba_batch *batch, bool has_loss, bool gradients,
                                 const char *path);

/* The tensor NAME of `file` as int32 of rank `rank`; to be freed. */
comba_status comba_forward_integers(const comba_safetensors *file, const char *name, int rank, const int64_t **shape,
                                    int32_t **values);
/* The same for floats. */
comba_status comba_forward_floats(const comba_safetensors *file, const char *name, int rank, const int64_t **shape,
                                  float **values);

#endif
