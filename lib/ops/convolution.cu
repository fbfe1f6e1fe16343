/* For each image y (O, H' W') = weight (O, C kh kw) columns (C kh kw, H' W') + bias (O); column (y, x) of `columns` is the window
 * whose first pixel is (stride y - padding, stride x - padding), zero outside the image
 * dx: weight^T dy, each window added back in its place;  dweight += dy columns^T;  dbias += sums of dy over B, H', W'
 *
 * Some images at a time have their columns in the workspace, (C kh kw, images, H' W'). So forward's products are a batch that writes the
 * images where they lie; and of dy turned likewise, (O, images, H' W'), backward's are one product each, whose sums run over all images. */
#include "core/cuda_packet.h"
#include "ops/cuda_window.h"

enum { X, WEIGHT, BIAS };
enum { PIECE = 1 << 25 }; /* elements of columns of the images that go together */
enum { THREADS = 256, PACKET = 8 };

struct convolution_plan {
  int64_t batch, filters;
  int32_t channels;
  cuda_axis down, across;
  int32_t taps, positions, pixels; /* C kh kw, H' W', C H W: see infer */
  int32_t padded;                  /* taps in whole packets: products are slow at odd widths */
  int64_t piece;                   /* images that go together */
};

/* In float32 each image has a weight gradient of its own, and these are added in order: one sum over all pixels of all images would lose
 * too much. In bfloat16 what is added has lost more before. */
template <class T> constexpr bool sums_by_image = sizeof(T) == sizeof(float);

/* The most of anything that an image has: columns and outputs, or pixels. */
template <class T> static int64_t largest(int64_t taps, int64_t positions, int64_t filters, int64_t pixels) {
  const int64_t columns = (taps + PACKET + filters) * positions + (sums_by_image<T> ? taps * filters : 0);
  return columns > pixels ? columns : pixels;
}

template <class T>
static convolution_plan measure(const comba_shape *x, const comba_shape *weight, const void *attributes) {
  const comba_window_attributes *a = (const comba_window_attributes *)attributes;
  convolution_plan p = {};
  p.batch = x->size[0];
  p.filters = weight->size[0];
  p.channels = (int32_t)x->size[1];
  p.down = cuda_axis_of(a, x->size[2], weight->size[2]);
  p.across = cuda_axis_of(a, x->size[3], weight->size[3]);
  p.taps = p.channels * p.down.kernel * p.across.kernel;
  p.padded = (p.taps + PACKET - 1) / PACKET * PACKET;
  p.positions = p.down.windows * p.across.windows;
  p.pixels = p.channels * p.down.size * p.across.size;
  const int64_t images = PIECE / largest<T>(p.taps, p.positions, p.filters, p.pixels);
  const int64_t pieces = (p.batch + images) / (images + 1); /* of images + 1 at most, as equal as they may be */
  p.piece = (p.batch + pieces - 1) / pieces;
  return p;
}

/* What the workspace holds one behind the other, in T */
template <class T> struct convolution_workspace {
  int64_t columns, rest, elements; /* rest: the padded weight, or dy turned; then weight gradients of images */

  convolution_workspace(const convolution_plan &p, bool backward) {
    columns = p.piece * p.padded * p.positions;
    rest = backward ? p.piece * p.filters * p.positions : p.padded == p.taps ? 0 : p.filters * p.padded;
    columns = (columns + PACKET - 1) / PACKET * PACKET;
    elements = columns + rest + (backward && sums_by_image<T> ? p.piece * p.filters * p.taps : 0);
  }
};

/* Kernels count the elements of a piece in int32. */
template <class T> static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *weight = &s->input[WEIGHT], *y = &s->output[0];
  const comba_shape columns = {5, {weight->size[1], weight->size[2], weight->size[3], y->size[2], y->size[3]}};
  const comba_status status = cuda_window_check(s, weight->size[2], weight->size[3]);
  if (status != COMBA_OK) return status;
  if (!comba_extent_fits(&columns, 5)) return comba_fail_extent(s, &columns);
  const int64_t count = largest<T>(weight->size[1] * weight->size[2] * weight->size[3], y->size[2] * y->size[3],
                                   weight->size[0], x->size[1] * x->size[2] * x->size[3]);
  if (count > INT32_MAX)
    return comba_fail(COMBA_ERROR_UNSUPPORTED,
                      "%s: an image has %lld pixels, columns or outputs, expected below 2^31 on a GPU", s->op,
                      (long long)count);
  const convolution_plan p = measure<T>(x, weight, s->attributes);
  const auto floats = [](int64_t elements) { return (elements * (int64_t)sizeof(T) + 3) / 4; };
  s->forward_workspace = floats(convolution_workspace<T>(p, false).elements);
  s->backward_workspace = floats(convolution_workspace<T>(p, true).elements);
  return COMBA_OK;
}

/* columns (padded, images, positions) of the images from x on; a thread N neighbours of a line */
template <int N, class T> static void gather(const convolution_plan &p, const T *x, int64_t images, T *columns) {
  const int32_t runs = p.positions / N, count = (int32_t)images;
  comba_each((int64_t)p.padded * images * runs, [=] __device__(int64_t index) {
    const int32_t i = (int32_t)index, position = i % runs * N, image = i / runs % count, tap = i / runs / count;
    const int32_t channel = tap / p.across.kernel / p.down.kernel;
    const int32_t row = p.down.start(position / p.across.windows) + tap / p.across.kernel % p.down.kernel;
    const int32_t column = p.across.start(position % p.across.windows) + tap % p.across.kernel;
    const T *line = x + (int64_t)image * p.pixels + ((int64_t)channel * p.down.size + row) * p.across.size;
    const bool inside = tap < p.taps && row >= 0 && row < p.down.size;
    packet<T, N> values;
#pragma unroll
    for (int n = 0; n < N; n++) {
      const int32_t at = column + n * p.across.stride;
      values.at[n] = inside && at >= 0 && at < p.across.size ? line[at] : (T)0.0f;
    }
    store_packet(columns + (int64_t)i * N, values);
  });
}
template <class T> static void gather(const convolution_plan &p, const T *x, int64_t images, T *columns) {
  p.across.windows % PACKET == 0 ? gather<PACKET>(p, x, images, columns) : gather<1>(p, x, images, columns);
}

/* turned (O, images, positions) = dy (images, O, positions) */
template <int N, class T> static void turn(const convolution_plan &p, const T *dy, int64_t images, T *turned) {
  const int32_t runs = p.positions / N, count = (int32_t)images, filters = (int32_t)p.filters;
  comba_each(p.filters * images * runs, [=] __device__(int64_t index) {
    const int32_t i = (int32_t)index, run = i % runs, image = i / runs % count, filter = i / runs / count;
    store_packet(turned + (int64_t)i * N, load_packet<N>(dy + ((int64_t)(image * filters + filter) * runs + run) * N));
  });
}
template <class T> static void turn(const convolution_plan &p, const T *dy, int64_t images, T *turned) {
  p.positions % PACKET == 0 && comba_cuda_aligned(dy, 16) ? turn<PACKET>(p, dy, images, turned)
                                                          : turn<1>(p, dy, images, turned);
}

/* The transpose of gather, dx = or +=: a pixel adds up what the windows that cover it have for it. columns (taps, images, positions) */
template <class T>
static void scatter(const convolution_plan &p, const T *columns, int64_t images, bool accumulate, T *dx) {
  const int64_t tap_stride = images * p.positions;
  comba_each(images * p.pixels, [=] __device__(int64_t index) {
    const int32_t i = (int32_t)index, column = i % p.across.size, row = i / p.across.size % p.down.size;
    const int32_t plane = i / p.across.size / p.down.size, image = plane / p.channels, channel = plane % p.channels;
    const T *taps = columns + (int64_t)channel * p.down.kernel * p.across.kernel * tap_stride + image * p.positions;
    const int32_t bottom = p.down.end(row), left = p.across.first(column), right = p.across.end(column);
    float sum = 0;
    for (int32_t y = p.down.first(row); y < bottom; y++)
      for (int32_t x = left; x < right; x++) {
        const int32_t tap = (row - p.down.start(y)) * p.across.kernel + column - p.across.start(x);
        sum += load(taps + tap * tap_stride + y * p.across.windows + x);
      }
    put(dx + i, sum, accumulate);
  });
}

template <class T> static void forward(const comba_call *call) {
  const convolution_plan p = measure<T>(&call->input[X].shape, &call->input[WEIGHT].shape, call->attributes);
  const float *bias = (const float *)call->input[BIAS].data;
  const T *weight = comba_cuda_weight<T>(call->input[WEIGHT].data);
  T *y = (T *)call->output[0].data, *columns = (T *)call->workspace;
  T *padded = columns + convolution_workspace<T>(p, false).columns;
  if (bias)
    comba_each(p.batch * p.filters * p.positions,
               [=] __device__(int64_t i) { store(y + i, bias[i / p.positions % p.filters]); });
  if (p.padded != p.taps)
    comba_each(p.filters * p.padded, [=] __device__(int64_t i) {
      const int64_t tap = i % p.padded;
      padded[i] = tap < p.taps ? weight[i / p.padded * p.taps + tap] : (T)0.0f;
    });
  for (int64_t first = 0; first < p.batch; first += p.piece) {
    const int64_t images = min(p.piece, p.batch - first);
    gather(p, (const T *)call->input[X].data + first * p.pixels, images, columns);
    comba_cuda_product product = {};
    product.batch = images;
    product.accumulate = bias;
    product.m = p.filters;
    product.n = product.stride_b = product.ldc = p.positions;
    product.k = product.lda = p.padded;
    product.ldb = images * p.positions;
    product.stride_c = p.filters * p.positions;
    product.a = p.padded == p.taps ? weight : padded;
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

/* dweight (O, taps) = or += dy columns^T, both as they lie in the workspace. `sums` (images, O, taps), where images have their own */
template <class T>
static void add_weight_gradient(const convolution_plan &p, const T *dy, const T *columns, int64_t images,
                                bool accumulate, float *sums, float *dweight) {
  comba_cuda_product product = {};
  product.transpose_b = true;
  product.m = p.filters;
  product.n = product.ldc = p.taps;
  product.k = product.lda = product.ldb = images * p.positions;
  product.a = dy;
  product.b = columns;
  product.c = dweight;
  product.accumulate = accumulate;
  if (sums_by_image<T>) {
    product.batch = images;
    product.k = product.stride_a = product.stride_b = p.positions;
    product.stride_c = p.filters * p.taps;
    product.c = sums;
    product.accumulate = false;
  }
  comba_cuda_multiply(&product, comba_cuda_type_of<T>(), true);
  if (sums_by_image<T>) comba_cuda_sum_rows(sums, images, p.filters * p.taps, accumulate, dweight);
}

/* dcolumns (taps, images, positions) = weight^T dy */
template <class T>
static void column_gradient(const convolution_plan &p, const T *weight, const T *dy, int64_t images, T *dcolumns) {
  comba_cuda_product product = {};
  product.transpose_a = true;
  product.m = product.lda = p.taps;
  product.n = product.ldb = product.ldc = images * p.positions;
  product.k = p.filters;
  product.a = weight;
  product.b = dy;
  product.c = dcolumns;
  comba_cuda_multiply(&product, comba_cuda_type_of<T>(), sizeof(T) == sizeof(float));
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << WEIGHT | 1u << BIAS)) return;
  const convolution_plan p = measure<T>(&call->input[X].shape, &call->input[WEIGHT].shape, call->attributes);
  const T *x = (const T *)call->input[X].data, *weight = comba_cuda_weight<T>(call->input[WEIGHT].data);
  const T *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *dbias = (float *)call->input_gradient[BIAS].data;
  const convolution_workspace<T> room(p, true);
  T *columns = (T *)call->workspace, *turned = columns + room.columns;
  float *sums = (float *)(turned + room.rest); /* where T is float */
  for (int64_t first = 0; first < p.batch && (dx || dweight); first += p.piece) {
    const int64_t images = min(p.piece, p.batch - first);
    turn(p, dy + first * p.filters * p.positions, images, turned);
    if (dweight) {
      gather(p, x + first * p.pixels, images, columns);
      add_weight_gradient(p, turned, columns, images, first || call->accumulate[WEIGHT], sums, dweight);
    }
    if (dx) {
      column_gradient(p, weight, turned, images, columns);
      scatter(p, columns, images, call->accumulate[X], dx + first * p.pixels);
    }
  }
  if (!dbias) return;
  sum_filters<<<(unsigned)p.filters, THREADS, 0, comba_cuda_stream()>>>(dy, p.batch, p.positions,
                                                                        call->accumulate[BIAS], dbias);
  comba_cuda_note(cudaGetLastError(), "convolution, backward");
}

COMBA_CUDA_ROW(convolution, infer<float>, 0, infer<bfloat16>);
