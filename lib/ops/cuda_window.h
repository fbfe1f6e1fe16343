/* ops/window.h for kernels: the windows along one axis of an image. Places are int32, which divide several times faster. */
#ifndef COMBA_OPS_CUDA_WINDOW_H
#define COMBA_OPS_CUDA_WINDOW_H

#include "core/cuda_kernel.h"
#include "ops/window.h"

struct cuda_axis {
  int32_t size, kernel, windows, stride, padding;

  __device__ int32_t start(int32_t window) const {
    return window * stride - padding;
  }
  /* The first window that covers a pixel, and the one behind the last. */
  __device__ int32_t first(int32_t pixel) const {
    const int32_t before = pixel + padding - kernel;
    return before < 0 ? 0 : before / stride + 1;
  }
  __device__ int32_t end(int32_t pixel) const {
    return min(windows, (pixel + padding) / stride + 1);
  }
};

static inline cuda_axis cuda_axis_of(const comba_window_attributes *a, int64_t size, int64_t kernel) {
  const cuda_axis axis = {(int32_t)size, (int32_t)kernel, (int32_t)comba_window_count(a, size, kernel),
                          (int32_t)comba_window_stride(a), (int32_t)a->padding};
  return axis;
}

/* Whether places along the axes of x (B,C,H,W) stay below 2^31. */
static inline comba_status cuda_window_check(const comba_signature *s, int64_t kernel_height, int64_t kernel_width) {
  const comba_window_attributes *a = (const comba_window_attributes *)s->attributes;
  const int64_t given[] = {s->input[0].size[2], s->input[0].size[3], kernel_height,
                           kernel_width,        a->stride,           a->padding};
  static const char *const names[] = {"height", "width", "kernel height", "kernel width", "stride", "padding"};
  for (int i = 0; i < 6; i++)
    if (given[i] > 1 << 28)
      return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: the %s is %lld, expected at most 2^28 on a GPU", s->op, names[i],
                        (long long)given[i]);
  return COMBA_OK;
}

#endif
