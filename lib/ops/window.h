/* The windows that convolution and max pooling slide over an image. */
#ifndef COMBA_OPS_WINDOW_H
#define COMBA_OPS_WINDOW_H

#include "ops/extent.h"
#include "ops/ops.h"

static inline int64_t comba_window_stride(const comba_window_attributes *attributes) {
  return attributes->stride ? attributes->stride : 1;
}

/* Number of windows along a side of `size` pixels; below 1 where none fits. */
static inline int64_t comba_window_count(const comba_window_attributes *attributes, int64_t size, int64_t kernel) {
  const int64_t room = size + 2 * attributes->padding - kernel;
  return room < 0 ? 0 : room / comba_window_stride(attributes) + 1;
}

/* After this, places of windows and their number cannot overflow for a size and a kernel that fit a tensor. */
static inline comba_status comba_window_check(const comba_signature *signature) {
  const comba_window_attributes *a = (const comba_window_attributes *)signature->attributes;
  if (a->stride < 0 || a->stride > COMBA_EXTENT_MAX)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: stride is %lld, expected 1 to %lld, or 0 for 1", signature->op,
                      (long long)a->stride, (long long)COMBA_EXTENT_MAX);
  if (a->padding < 0 || a->padding > COMBA_EXTENT_MAX)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: padding is %lld, expected 0 to %lld", signature->op,
                      (long long)a->padding, (long long)COMBA_EXTENT_MAX);
  return COMBA_OK;
}

#endif
