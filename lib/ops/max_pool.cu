/* y[i,j] = max over the window of x whose first pixel is (stride i - padding, stride j - padding), inside the image
 * dx at the place of each window's largest value += dy[i,j]; of equal values the first in row-major order, of NaNs the last
 *
 * Saved: the place in its plane (H,W), int32. Backward gathers: a pixel looks into the windows that cover it, in their order. */
#include "core/cuda_packet.h"
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
  const int64_t windows = (int64_t)down.windows * across.windows;
  const T *x = (const T *)call->input[X].data;
  T *y = (T *)call->output[0].data;
  int32_t *places = (int32_t *)call->saved[PLACE].data;
  comba_each(planes * windows, [=] __device__(int64_t i) {
    const int64_t plane = i / windows;
    const int32_t window = (int32_t)(i - plane * windows);
    const T *pixels = x + plane * down.size * across.size;
    const int32_t y0 = down.start(window / across.windows), x0 = across.start(window % across.windows);
    const int32_t top = max(y0, 0), bottom = min(down.size, y0 + down.kernel);
    const int32_t left = max(x0, 0), right = min(across.size, x0 + across.kernel);
    int32_t place = top * across.size + left;
    float best = -INFINITY;
    for (int32_t row = top; row < bottom; row++)
      for (int32_t column = left; column < right; column++) {
        const float value = load(pixels + row * across.size + column);
        if (value > best || value != value) {
          best = value;
          place = row * across.size + column;
        }
      }
    store(y + i, best);
    if (places) places[i] = place;
  });
}

/* A thread has N neighbours of a line, and looks once into each window that covers one of them. */
template <int N, class T>
static void gather(cuda_axis down, cuda_axis across, int64_t planes, const T *dy, const int32_t *places,
                   bool accumulate, T *dx) {
  const int32_t runs = across.size / N;
  const int64_t in_plane = (int64_t)down.size * runs;
  comba_each(planes * in_plane, [=] __device__(int64_t i) {
    const int64_t plane = i / in_plane, windows = plane * down.windows * across.windows; /* of the planes before */
    const int32_t run = (int32_t)(i - plane * in_plane), row = run / runs, column = run % runs * N;
    const int32_t first = row * across.size + column, bottom = down.end(row);
    const int32_t left = across.first(column), right = across.end(column + N - 1);
    float sum[N] = {};
    for (int32_t y = down.first(row); y < bottom; y++)
      for (int32_t x = left; x < right; x++) {
        const int64_t window = windows + (int64_t)y * across.windows + x;
        const int32_t place = places[window] - first;
        const float value = load(dy + window);
#pragma unroll
        for (int n = 0; n < N; n++) sum[n] += place == n ? value : 0;
      }
    put_packet<N>(dx + plane * down.size * across.size + first, sum, accumulate);
  });
}

template <class T> static void backward(const comba_call *call) {
  enum { N = 4 };
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  const cuda_axis down = axis_of(call, 2), across = axis_of(call, 3);
  const int64_t planes = call->input[X].shape.size[0] * call->input[X].shape.size[1];
  T *dx = (T *)call->input_gradient[X].data;
  const bool packs = across.size % N == 0 && comba_cuda_aligned(dx, N * sizeof(T));
  (packs ? gather<N, T> : gather<1, T>)(down, across, planes, (const T *)call->output_gradient[0].data,
                                        (const int32_t *)call->saved[PLACE].data, call->accumulate[X], dx);
}

COMBA_CUDA_ROW(max_pool, infer);
