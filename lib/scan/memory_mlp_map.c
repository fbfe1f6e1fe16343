/* The maps of the matrix memory (memory_mapped.c), for a matrix of the two-layer one: each of its two has norms and sums of its
 * own. */
#include "scan/memory.h"
#include "scan/memory_mlp_map.h"

static memory_head matrix_of(const memory_mlp_map *map, int64_t rows, int64_t columns) {
  const double R = (double)rows, C = (double)columns;
  const double total = map->kind == COMBA_MEMORY_SOFTMAX_COLUMN ? sqrt(R)
                       : map->kind == COMBA_MEMORY_SOFTMAX_ROW  ? C / sqrt(R)
                                                                : C * sqrt(R);
  return (memory_head){.rows = rows,
                       .V = columns,
                       .map = map->kind,
                       .map_exponent = map->exponent != 0 ? map->exponent : 4,
                       .map_total = map->total != 0 ? map->total : total};
}

void COMBA_VARIANT(comba_memory_mlp_map)(const memory_mlp_map *map, int64_t rows, int64_t columns, const real *A,
                                         real *memory) {
  const memory_head matrix = matrix_of(map, rows, columns);
  COMBA_VARIANT(comba_memory_map)(&matrix, A, memory);
}

void COMBA_VARIANT(comba_memory_mlp_map_backward)(const memory_mlp_map *map, int64_t rows, int64_t columns,
                                                  const real *A, const real *memory, real *gradient) {
  const memory_head matrix = matrix_of(map, rows, columns);
  COMBA_VARIANT(comba_memory_map_backward)(&matrix, A, memory, gradient);
}
