/* y[b, n] = scale * sum over directions of x[direction B + b, place(direction, n)], directions and scale as in scan_merge.c
 * dx[direction B + b, i] = scale * dy[b, token(direction, i)] */
#include "ops/cuda_grid.h"

enum { X };

static float scale(const comba_call *call, const comba_grid_scan &g) {
  return ((const comba_scan_attributes *)call->attributes)->average ? 1 / (float)g.directions : 1;
}

template <class T> static void forward(const comba_call *call) {
  const comba_grid_scan g =
      comba_scan_merge_grid((const comba_scan_attributes *)call->attributes, &call->input[X].shape);
  cuda_grid_gather(g, (const T *)call->input[X].data, scale(call, g), false, (T *)call->output[0].data);
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  const comba_grid_scan g =
      comba_scan_merge_grid((const comba_scan_attributes *)call->attributes, &call->input[X].shape);
  cuda_grid_spread(g, (const T *)call->output_gradient[0].data, scale(call, g), call->accumulate[X],
                   (T *)call->input_gradient[X].data);
}

COMBA_CUDA_ROW(scan_merge);
