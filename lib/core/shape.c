#include <stdio.h>

#include "core/op.h"

/* 0 for an absent operand (rank 0); -1 where a size is negative or the product does not fit, so that a caller who takes
 * shapes from outside has one comparison to make. */
int64_t comba_shape_elements(const comba_shape *shape) {
  if (shape->rank == 0) return 0;
  int64_t elements = 1;
  bool empty = false, overflow = false;
  for (int i = 0; i < shape->rank; i++) {
    if (shape->size[i] < 0) return -1;
    if (shape->size[i] == 0) empty = true;
    overflow |= __builtin_mul_overflow(elements, shape->size[i], &elements);
  }
  return empty ? 0 : (overflow ? -1 : elements);
}

bool comba_shape_equal(const comba_shape *a, const comba_shape *b) {
  if (a->rank != b->rank) return false;
  for (int i = 0; i < a->rank; i++)
    if (a->size[i] != b->size[i]) return false;
  return true;
}

const char *comba_shape_text(const comba_shape *shape, char text[COMBA_SHAPE_TEXT]) {
  int used = snprintf(text, COMBA_SHAPE_TEXT, "(");
  for (int i = 0; i < shape->rank; i++)
    used +=
        snprintf(text + used, (size_t)(COMBA_SHAPE_TEXT - used), "%s%lld", i ? ", " : "", (long long)shape->size[i]);
  snprintf(text + used, (size_t)(COMBA_SHAPE_TEXT - used), ")");
  return text;
}

comba_status comba_fail_shape(const comba_signature *signature, int input, const char *expected) {
  const comba_shape *shape = &signature->input[input];
  char text[COMBA_SHAPE_TEXT];
  if (shape->rank == 0)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: input %d is absent, expected %s", signature->op, input, expected);
  return comba_fail(COMBA_ERROR_ARGUMENT, "%s: input %d has shape %s, expected %s", signature->op, input,
                    comba_shape_text(shape, text), expected);
}
