/* Maps of a matrix of the two-layer memory. */
#ifndef COMBA_SCAN_MEMORY_MLP_MAP_H
#define COMBA_SCAN_MEMORY_MLP_MAP_H

#include "ops/ops.h"

typedef struct memory_mlp_map {
  comba_memory_map kind;
  double exponent; /* 0 means 4 */
  double
      total; /* of a matrix, a column or a row; 0: entries that are equal give a unit row of equal entries back as ones */
} memory_mlp_map;

/* memory (rows,columns) = f(A). */
void COMBA_VARIANT(comba_memory_mlp_map)(const memory_mlp_map *map, int64_t rows, int64_t columns, const real *A,
                                         real *memory);
/* The gradient (rows,columns) of the memory becomes that of A. */
void COMBA_VARIANT(comba_memory_mlp_map_backward)(const memory_mlp_map *map, int64_t rows, int64_t columns,
                                                  const real *A, const real *memory, real *gradient);

#endif
