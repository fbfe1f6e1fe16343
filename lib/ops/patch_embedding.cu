/* y (B,N,d) = patches (B N, C p p) weight (d, C p p)^T + bias (d); row n of an image's patches is patch n, row-major
 * dpixels = dy weight, each patch back in its place;  dweight += dy^T patches;  dbias += column sums of dy
 *
 * The matrix of patches is as large as the pixels and passes through the workspace, that of their gradients in float. */
#include "ops/cuda_rows.h"

enum { PIXELS, WEIGHT, BIAS };

struct patch_grid {
  int64_t channels, side, rows, columns; /* C, p, H/p, W/p */
  int64_t patch, features, count;        /* C p p, d, B N */

  /* f(place in the matrix of patches, place in the pixels (B,C,H,W)) for each value of patch n, by a warp */
  template <class F> __device__ void each(int64_t n, int64_t lane, F f) const {
    const int64_t width = columns * side, height = rows * side, image = n / columns / rows;
    const int64_t corner = (image * channels * height + n / columns % rows * side) * width + n % columns * side;
    for (int32_t i = (int32_t)lane, p = (int32_t)side; i < patch; i += 32)
      f(n * patch + i, corner + (i / (p * p) * height + i / p % p) * width + i % p);
  }
};

static patch_grid measure(const comba_shape *pixels, const comba_shape *weight) {
  patch_grid g = {};
  g.channels = weight->size[1];
  g.side = weight->size[2];
  g.rows = pixels->size[2] / g.side;
  g.columns = pixels->size[3] / g.side;
  g.patch = g.channels * g.side * g.side;
  g.features = weight->size[0];
  g.count = pixels->size[0] * g.rows * g.columns;
  return g;
}

static comba_status infer(comba_signature *s) {
  const patch_grid g = measure(&s->input[PIXELS], &s->input[WEIGHT]);
  if (g.patch > INT32_MAX - 32)
    return comba_fail_shape(s, WEIGHT, "(d, C, p, p) with fewer than 2^31 values a patch on a GPU");
  s->forward_workspace = g.count * g.patch;
  s->backward_workspace =
      s->forward_workspace + (s->input[BIAS].rank ? cuda_columns_workspace(g.count, g.features) : 0);
  return COMBA_OK;
}

template <class T> static void gather(const patch_grid &g, const T *pixels, T *patches) {
  comba_each_row(g.count, [=] __device__(int64_t n, int64_t lane) {
    g.each(n, lane, [=](int64_t place, int64_t pixel) { patches[place] = pixels[pixel]; });
  });
}

template <class T> static void forward(const comba_call *call) {
  const patch_grid g = measure(&call->input[PIXELS].shape, &call->input[WEIGHT].shape);
  T *patches = (T *)call->workspace;
  gather(g, (const T *)call->input[PIXELS].data, patches);
  comba_cuda_product product = {};
  product.transpose_b = true;
  product.m = g.count;
  product.n = g.features;
  product.k = g.patch;
  product.lda = product.ldb = g.patch;
  product.ldc = g.features;
  product.a = patches;
  product.b = comba_cuda_weight<T>(call->input[WEIGHT].data);
  product.bias = call->input[BIAS].data ? comba_cuda_weight<T>(call->input[BIAS].data) : NULL;
  product.c = call->output[0].data;
  comba_cuda_multiply(&product, comba_cuda_type_of<T>(), sizeof(T) == sizeof(float));
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << WEIGHT | 1u << BIAS)) return;
  const patch_grid g = measure(&call->input[PIXELS].shape, &call->input[WEIGHT].shape);
  const T *dy = (const T *)call->output_gradient[0].data;
  T *dpixels = (T *)call->input_gradient[PIXELS].data;
  float *dbias = (float *)call->input_gradient[BIAS].data;
  if (call->input_gradient[WEIGHT].data) {
    T *patches = (T *)call->workspace;
    gather(g, (const T *)call->input[PIXELS].data, patches);
    comba_cuda_product product = {};
    product.transpose_a = true;
    product.m = g.features;
    product.n = g.patch;
    product.k = g.count;
    product.lda = g.features;
    product.ldb = product.ldc = g.patch;
    product.a = dy;
    product.b = patches;
    product.c = call->input_gradient[WEIGHT].data;
    product.accumulate = call->accumulate[WEIGHT];
    comba_cuda_multiply(&product, comba_cuda_type_of<T>(), true);
  }
  if (dpixels) {
    float *dpatches = (float *)call->workspace;
    comba_cuda_product product = {};
    product.m = g.count;
    product.n = g.patch;
    product.k = g.features;
    product.lda = g.features;
    product.ldb = product.ldc = g.patch;
    product.a = dy;
    product.b = comba_cuda_weight<T>(call->input[WEIGHT].data);
    product.c = dpatches;
    comba_cuda_multiply(&product, comba_cuda_type_of<T>(), true);
    const bool accumulate = call->accumulate[PIXELS];
    comba_each_row(g.count, [=] __device__(int64_t n, int64_t lane) {
      g.each(n, lane, [=](int64_t place, int64_t pixel) { put(dpixels + pixel, dpatches[place], accumulate); });
    });
  }
  if (dbias)
    cuda_sum_columns(
        g.count, g.features, [=] __device__(int64_t row, int64_t j) { return load(dy + row * g.features + j); },
        (float *)call->workspace + g.count * g.patch, call->accumulate[BIAS], dbias);
}

COMBA_CUDA_ROW(patch_embedding, infer);
