#ifndef COMBA_MODEL_ORTHOGONAL_H
#define COMBA_MODEL_ORTHOGONAL_H

#include "core/status.h"

/* data (rows, columns) = gain times a matrix whose rows, or where there are fewer columns those, are orthonormal and of no
 * preferred direction. The same for every number of threads. */
comba_status comba_draw_orthogonal(float *data, int64_t rows, int64_t columns, double gain, uint64_t seed,
                                   uint64_t stream);

#endif
