/* Sizes that `infer` can trust: shapes and attributes come from config and weight files and may hold any integers. */
#ifndef COMBA_OPS_EXTENT_H
#define COMBA_OPS_EXTENT_H

#include "core/op.h"

/* The most elements of a tensor or a piece of workspace: their bytes and small multiples stay far inside int64_t. */
#define COMBA_EXTENT_MAX ((int64_t)1 << 40)

/* Whether the shape has that rank (0: any from 1), every size is at least 1, and their product is in range. */
static inline bool comba_extent_fits(const comba_shape *shape, int rank) {
  if (shape->rank < 1 || shape->rank > COMBA_MAX_RANK || (rank && shape->rank != rank)) return false;
  int64_t elements = 1;
  for (int i = 0; i < shape->rank; i++)
    if (shape->size[i] < 1 || __builtin_mul_overflow(elements, shape->size[i], &elements) ||
        elements > COMBA_EXTENT_MAX)
      return false;
  return true;
}

static inline comba_status comba_fail_extent(const comba_signature *signature, const comba_shape *shape) {
  char text[COMBA_SHAPE_TEXT];
  return comba_fail(COMBA_ERROR_ARGUMENT, "%s: a result or workspace has shape %s, expected at most 2^40 elements",
                    signature->op, comba_shape_text(shape, text));
}

#endif
