/* y[i,j] = max over the window of x whose first pixel is (stride i - padding, stride j - padding), inside the image
 * dx at the place of each window's largest value += dy[i,j]; of equal values the first in row-major order, of NaNs the last
 *
 * Saved: the place in its plane (H,W), int32. A warp has a line of windows, or of pixels: backward gathers, a pixel looks into the
 * windows that cover it, in their order. */
#include "ops/cuda_rows.h"
#include "ops/cuda_window.h"

enum { X };
enum { PLACE };

static int64_t kernel_of(const void *attributes) {
  return ((const comba_window_attributes *)attributes)->kernel;
}

static comba_status infer(comba_signature *s) {
  s->forward_workspace = 0;
  return cuda_window_check(s, kernel_of(s->attributes), kernel_of(s->attributes));
}

static cuda_axis axis_of(const comba_call *call, int dimension) {
  return cuda_axis_of((const comba_window_attributes *)call->attributes, call->input[X].shape.size[dimension],
                      kernel_of(call->attributes));
}

template <class T> static void forward(const comba_call *call) {
  const cuda_axis down = axis_of(call, 2), across = axis_of(call, 3);
  const int64_t planes = call->input[X].shape.size[0] * call->input[X].shape.size[1];
  const T *x = (const T *)call->input[X].data;
  T *y = (T *)call->output[0].data;
  int32_t *places = (int32_t *)call->saved[PLACE].data;
  comba_each_row(planes * down.windows, [=] __device__(int64_t line, int64_t lane) {
    const T *plane = x + line / down.windows * down.size * across.size;
    const int32_t start = down.start((int32_t)(line % down.windows));
    const int32_t top = max(start, 0), bottom = min(down.size, start + down.kernel);
    for (int32_t j = (int32_t)lane; j < across.windows; j += 32) {
      const int32_t left = max(across.start(j), 0), right = min(across.size, across.start(j) + across.kernel);
      int32_t place = top * across.size + left;
      float best = -INFINITY;
      for (int32_t row = top; row < bottom; row++)
        for (int32_t column = left; column < right; column++) {
          const float value = load(plane + row * across.size + column);
          if (value > best || value != value) {
            best = value;
            place = row * across.size + column;
          }
        }
      store(y + line * across.windows + j, best);
      if (places) places[line * across.windows + j] = place;
    }
  });
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  const cuda_axis down = axis_of(call, 2), across = axis_of(call, 3);
  const int64_t planes = call->input[X].shape.size[0] * call->input[X].shape.size[1];
  const T *dy = (const T *)call->output_gradient[0].data;
  const int32_t *places = (const int32_t *)call->saved[PLACE].data;
  T *dx = (T *)call->input_gradient[X].data;
  const bool accumulate = call->accumulate[X];
  comba_each_row(planes * down.size, [=] __device__(int64_t line, int64_t lane) {
    const int64_t windows = line / down.size * down.windows * across.windows; /* those of the planes before */
    const int32_t row = (int32_t)(line % down.size), bottom = down.end(row);
    for (int32_t column = (int32_t)lane; column < across.size; column += 32) {
      const int32_t left = across.first(column), right = across.end(column);
      float sum = 0;
      for (int32_t i = down.first(row); i < bottom; i++)
        for (int32_t j = left; j < right; j++) {
          const int64_t window = windows + (int64_t)i * across.windows + j;
          if (places[window] == row * across.size + column) sum += load(dy + window);
        }
      put(dx + line * across.size + column, sum, accumulate);
    }
  });
}

COMBA_CUDA_ROW(max_pool, infer);
