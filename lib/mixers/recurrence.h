/* Engines as mixers append them: from the state NAME of a decoder, which is updated. */
#ifndef COMBA_MIXERS_RECURRENCE_H
#define COMBA_MIXERS_RECURRENCE_H

#include "model/build.h"
#include "ops/ops.h"

/* comba_scalar_decay (ops/ops.h) in the mode of `build`; g NULL: by attributes.retention. */
comba_tensor *comba_build_scalar_decay(comba_build *build, const char *name, comba_tensor *q, comba_tensor *k,
                                       comba_tensor *v, comba_tensor *g, comba_scalar_decay_attributes attributes);

/* comba_diagonal_decay, likewise; a and b NULL: no low-rank term. */
comba_tensor *comba_build_diagonal_decay(comba_build *build, const char *name, comba_tensor *q, comba_tensor *k,
                                         comba_tensor *v, comba_tensor *g, comba_tensor *a, comba_tensor *b,
                                         comba_diagonal_decay_attributes attributes);

#endif
