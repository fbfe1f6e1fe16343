/* For each image y (O, H' W') = weight (O, C kh kw) columns (C kh kw, H' W') + bias (O); column (y, x) of `columns` is the window
 * whose first pixel is (stride y - padding, stride x - padding), zero outside the image
 * dx: weight^T dy, each window added back in its place;  dweight += dy columns^T;  dbias += sums of dy over B, H', W'
 *
 * Some images at a time have their columns in the workspace, of which products of all of them are one batch. Each image has a
 * weight gradient of its own; those are added in the order of the images. */
#include "ops/cuda_window.h"

enum { X, WEIGHT, BIAS };
enum { PIECE = 1 << 24 }; /* floats of columns, or of weight gradients, of the images that go together */
enum { THREADS = 256 };

struct convolution_plan {
  int64_t batch, filters;
  int32_t channels;
  cuda_axis down, across;
  int32_t taps, positions, pixels; /* C kh kw, H' W', C H W: see infer */
  int64_t piece;                   /* images that go together */
};

/* The most of anything that an image has: columns, weight gradients, pixels. */
static int64_t largest(int64_t taps, int64_t positions, int64_t filters, int64_t pixels) {
  const int64_t columns = taps * (positions > filters ? positions : filters);
  return columns > pixels ? columns : pixels;
}

static convolution_plan measure(const comba_shape *x, const comba_shape *weight, const void *attributes) {
  const comba_window_attributes *a = (const comba_window_attributes *)attributes;
  convolution_plan p = {};
  p.batch = x->size[0];
  p.filters = weight->size[0];
  p.channels = (int32_t)x->size[1];
  p.down = cuda_axis_of(a, x->size[2], weight->size[2]);
  p.across = cuda_axis_of(a, x->size[3], weight->size[3]);
  p.taps = p.channels * p.down.kernel * p.across.kernel;
  p.positions = p.down.windows * p.across.windows;
  p.pixels = p.channels * p.down.size * p.across.size;
  p.piece = PIECE / largest(p.taps, p.positions, p.filters, p.pixels);
  if (p.piece < 1) p.piece = 1;
  if (p.piece > p.batch) p.piece = p.batch;
  return p;
}

/* Kernels count the elements of a piece in int32. */
static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *weight = &s->input[WEIGHT], *y = &s->output[0];
  const comba_shape columns = {5, {weight->size[1], weight->size[2], weight->size[3], y->size[2], y->size[3]}};
  const comba_status status = cuda_window_check(s, weight->size[2], weight->size[3]);
  if (status != COMBA_OK) return status;
  if (!comba_extent_fits(&columns, 5)) return comba_fail_extent(s, &columns);
  const int64_t count = largest(weight->size[1] * weight->size[2] * weight->size[3], y->size[2] * y->size[3],
                                weight->size[0], x->size[1] * x->size[2] * x->size[3]);
  if (count > INT32_MAX)
    return comba_fail(COMBA_ERROR_UNSUPPORTED,
                      "%s: an image has %lld pixels, columns or weights, expected below 2^31 on a GPU", s->op,
                      (long long)count);
  const convolution_plan p = measure(x, weight, s->attributes);
  s->forward_workspace = p.piece * p.taps * p.positions;
  s->backward_workspace = p.piece * p.taps * (p.positions + p.filters);
  return COMBA_OK;
}

/* columns (images, taps, positions) of the images from x on */
template <class T> static void gather(const convolution_plan &p, const T *x, int64_t images, T *columns) {
  comba_each(images * p.taps * p.positions, [=] __device__(int64_t index) {
    const int32_t i = (int32_t)index, position = i % p.positions, tap = i / p.positions % p.taps;
    const int32_t image = i / p.positions / p.taps, channel = tap / p.across.kernel / p.down.kernel;
    const int32_t row = p.down.start(position / p.across.windows) + tap / p.across.kernel % p.down.kernel;
    const int32_t column = p.across.start(position % p.across.windows) + tap % p.across.kernel;
    const bool inside = row >= 0 && row < p.down.size && column >= 0 && column < p.across.size;
    columns[i] = inside ? x[image * p.pixels + (channel * p.down.size + row) * p.across.size + column] : (T)0.0f;
  });
}

/* The transpose of gather, dx = or +=: a pixel adds up what the windows that cover it have for it. */
template <class T>
static void scatter(const convolution_plan &p, const float *columns, int64_t images, bool accumulate, T *dx) {
  comba_each(images * p.pixels, [=] __device__(int64_t index) {
    const int32_t i = (int32_t)index, column = i % p.across.size, row = i / p.across.size % p.down.size;
    const int32_t plane = i / p.across.size / p.down.size; /* image and channel; as many taps each */
    const float *taps = columns + (int64_t)plane * p.down.kernel * p.across.kernel * p.positions;
    const int32_t bottom = p.down.end(row), left = p.across.first(column), right = p.across.end(column);
    float sum = 0;
    for (int32_t y = p.down.first(row); y < bottom; y++)
      for (int32_t x = left; x < right; x++) {
        const int32_t tap = (row - p.down.start(y)) * p.across.kernel + column - p.across.start(x);
        sum += taps[tap * p.positions + y * p.across.windows + x];
      }
    put(dx + i, sum, accumulate);
  });
}

template <class T> static void forward(const comba_call *call) {
  const convolution_plan p = measure(&call->input[X].shape, &call->input[WEIGHT].shape, call->attributes);
  const float *bias = (const float *)call->input[BIAS].data;
  T *y = (T *)call->output[0].data, *columns = (T *)call->workspace;
  if (bias)
    comba_each(p.batch * p.filters * p.positions,
               [=] __device__(int64_t i) { store(y + i, bias[i / p.positions % p.filters]); });
  for (int64_t first = 0; first < p.batch; first += p.piece) {
    comba_cuda_product product = {};
    product.batch = min(p.piece, p.batch - first);
    gather(p, (const T *)call->input[X].data + first * p.pixels, product.batch, columns);
    product.accumulate = bias;
    product.m = p.filters;
    product.n = p.positions;
    product.k = p.taps;
    product.lda = p.taps;
    product.ldb = product.ldc = p.positions;
    product.stride_b = p.taps * p.positions;
    product.stride_c = p.filters * p.positions;
    product.a = comba_cuda_weight<T>(call->input[WEIGHT].data);
    product.b = columns;
    product.c = y + first * p.filters * p.positions;
    comba_cuda_multiply(&product, comba_cuda_type_of<T>(), sizeof(T) == sizeof(float));
  }
}

/* dbias (O) = or += sums of dy (B, O, positions). A block a filter. */
template <class T>
static __global__ void sum_filters(const T *dy, int64_t batch, int64_t positions, bool accumulate, float *dbias) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < batch * positions; i += THREADS)
    sum += load(dy + (i / positions * gridDim.x + blockIdx.x) * positions + i % positions);
  sum = block_sum(sum);
  if (!threadIdx.x) put(dbias + blockIdx.x, sum, accumulate);
}

/* dweight (O, taps) = or += dy columns^T, over some images. `partial` (images, O, taps) */
template <class T>
static void add_weight_gradient(const convolution_plan &p, const T *dy, const T *columns, int64_t images,
                                bool accumulate, float *partial, float *dweight) {
  comba_cuda_product product = {};
  product.transpose_b = true;
  product.batch = images;
  product.m = p.filters;
  product.n = p.taps;
  product.k = p.positions;
  product.lda = product.ldb = p.positions;
  product.ldc = p.taps;
  product.stride_a = p.filters * p.positions;
  product.stride_b = p.taps * p.positions;
  product.stride_c = p.filters * p.taps;
  product.a = dy;
  product.b = columns;
  product.c = partial;
  comba_cuda_multiply(&product, comba_cuda_type_of<T>(), true);
  comba_cuda_sum_rows(partial, images, p.filters * p.taps, accumulate, dweight);
}

/* dcolumns (images, taps, positions) = weight^T dy */
template <class T>
static void column_gradient(const convolution_plan &p, const T *weight, const T *dy, int64_t images, float *dcolumns) {
  comba_cuda_product product = {};
  product.transpose_a = true;
  product.batch = images;
  product.m = p.taps;
  product.n = p.positions;
  product.k = p.filters;
  product.lda = p.taps;
  product.ldb = product.ldc = p.positions;
  product.stride_b = p.filters * p.positions;
  product.stride_c = p.taps * p.positions;
  product.a = weight;
  product.b = dy;
  product.c = dcolumns;
  comba_cuda_multiply(&product, comba_cuda_type_of<T>(), true);
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << WEIGHT | 1u << BIAS)) return;
  const convolution_plan p = measure(&call->input[X].shape, &call->input[WEIGHT].shape, call->attributes);
  const T *x = (const T *)call->input[X].data, *weight = comba_cuda_weight<T>(call->input[WEIGHT].data);
  const T *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *dbias = (float *)call->input_gradient[BIAS].data;
  float *columns = (float *)call->workspace, *partial = columns + p.piece * p.taps * p.positions;
  for (int64_t first = 0; first < p.batch && (dx || dweight); first += p.piece) {
    const int64_t images = min(p.piece, p.batch - first);
    const T *piece = dy + first * p.filters * p.positions;
    if (dweight) {
      gather(p, x + first * p.pixels, images, (T *)columns);
      add_weight_gradient(p, piece, (const T *)columns, images, first || call->accumulate[WEIGHT], partial, dweight);
    }
    if (dx) {
      column_gradient(p, weight, piece, images, columns);
      scatter(p, columns, images, call->accumulate[X], dx + first * p.pixels);
    }
  }
  if (!dbias) return;
  sum_filters<<<(unsigned)p.filters, THREADS, 0, comba_cuda_stream()>>>(dy, p.batch, p.positions,
                                                                        call->accumulate[BIAS], dbias);
  comba_cuda_note(cudaGetLastError(), "convolution, backward");
}

COMBA_CUDA_ROW(convolution, infer);
