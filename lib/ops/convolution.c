/* For each image y (O, H' W') = weight (O, C kh kw) columns (C kh kw, H' W') + bias (O); column (y, x) of `columns` is
 * the window whose first pixel is (stride y - padding, stride x - padding), zero outside the image
 * dx: weight^T dy, each window added back in its place;  dweight += dy columns^T;  dbias += sums of dy over B, H', W'
 *
 * `columns` is never whole: a band of output rows of one image passes through the workspace at a time. The batch is cut
 * into blocks that run beside each other, each with a band and, in backward, a weight gradient of its own; those are
 * added in block order. */
#include "core/gemm.h"
#include "ops/gradient.h"
#include "ops/window.h"

enum { X, WEIGHT, BIAS };
enum { BAND = 1 << 18 };     /* reals of a band: it stays in a core's own cache between its making and the product */
enum { PARTIALS = 1 << 24 }; /* reals of all partial weight gradients, where that leaves at least MINIMUM blocks */
enum { MINIMUM = 8 };

typedef struct convolution_plan {
  int64_t batch, channels, height, width;
  int64_t filters, kernel_height, kernel_width, stride, padding;
  int64_t out_height, out_width;
  int64_t taps;            /* C kh kw */
  int64_t band, bands;     /* output rows in a band, bands in an image */
  int64_t forward_blocks;  /* of bands */
  int64_t backward_blocks; /* of images: two bands of one image add to the same pixels */
} convolution_plan;

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static convolution_plan measure(const comba_shape *x, const comba_shape *weight, const comba_window_attributes *a) {
  convolution_plan p = {.batch = x->size[0], .channels = x->size[1], .height = x->size[2], .width = x->size[3]};
  p.filters = weight->size[0], p.kernel_height = weight->size[2], p.kernel_width = weight->size[3];
  p.stride = comba_window_stride(a), p.padding = a->padding;
  p.out_height = comba_window_count(a, p.height, p.kernel_height);
  p.out_width = comba_window_count(a, p.width, p.kernel_width);
  p.taps = p.channels * p.kernel_height * p.kernel_width;
  p.band = larger(1, smaller(p.out_height, BAND / (p.taps * p.out_width)));
  p.bands = (p.out_height + p.band - 1) / p.band;
  p.forward_blocks = comba_blocks(p.batch * p.bands, 1);
  p.backward_blocks = smaller(comba_blocks(p.batch, 1), larger(MINIMUM, PARTIALS / (p.filters * p.taps)));
  return p;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *weight = &s->input[WEIGHT], *bias = &s->input[BIAS];
  if (!comba_extent_fits(x, 4)) return comba_fail_shape(s, X, "(B, C, H, W)");
  if (!comba_extent_fits(weight, 4) || weight->size[1] != x->size[1])
    return comba_fail_shape(s, WEIGHT, "(O, C, kh, kw) with C the channels of x");
  if (bias->rank && (bias->rank != 1 || bias->size[0] != weight->size[0])) return comba_fail_shape(s, BIAS, "(O)");
  const comba_status status = comba_window_check(s);
  if (status != COMBA_OK) return status;
  const comba_window_attributes *a = s->attributes;
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(x->size[0], weight->size[0], comba_window_count(a, x->size[2], weight->size[2]),
                             comba_window_count(a, x->size[3], weight->size[3]));
  if (s->output[0].size[2] < 1 || s->output[0].size[3] < 1)
    return comba_fail_shape(s, WEIGHT, "(O, C, kh, kw) with a window that fits into the padded image");
  const comba_shape row = COMBA_SHAPE(weight->size[1], weight->size[2], weight->size[3], s->output[0].size[3]);
  if (!comba_extent_fits(&s->output[0], 4)) return comba_fail_extent(s, &s->output[0]);
  if (!comba_extent_fits(&row, 4)) return comba_fail_extent(s, &row);
  const convolution_plan p = measure(x, weight, a);
  const int64_t columns = p.taps * p.band * p.out_width;
  s->forward_workspace = p.forward_blocks * columns;
  s->backward_workspace = p.backward_blocks * (columns + p.filters * p.taps + p.filters);
  s->forward_flops = 2.0 * (double)(p.batch * p.out_height * p.out_width) * (double)p.filters * (double)p.taps;
  s->backward_flops = 2 * s->forward_flops;
  return COMBA_OK;
}

/* Output columns [*begin, *end) whose tap `kx` falls inside the image. */
static void inside(const convolution_plan *p, int64_t kx, int64_t *begin, int64_t *end) {
  const int64_t missing = p->padding - kx; /* pixels that window 0 starts too early for this tap */
  const int64_t first = missing > 0 ? (missing + p->stride - 1) / p->stride : 0;
  const int64_t last = p->width + missing > 0 ? (p->width + missing - 1) / p->stride + 1 : 0;
  *end = smaller(last, p->out_width);
  *begin = smaller(first, *end);
}

/* columns (taps, rows W') of the output rows from `first` on, from one image (C,H,W) */
static void gather(const convolution_plan *p, const real *image, int64_t first, int64_t rows, real *columns) {
  for (int64_t c = 0; c < p->channels; c++)
    for (int64_t ky = 0; ky < p->kernel_height; ky++)
      for (int64_t kx = 0; kx < p->kernel_width; kx++) {
        int64_t begin, end;
        inside(p, kx, &begin, &end);
        for (int64_t row = first; row < first + rows; row++, columns += p->out_width) {
          const int64_t y = row * p->stride - p->padding + ky;
          if (y < 0 || y >= p->height || begin == end) {
            memset(columns, 0, (size_t)p->out_width * sizeof(real));
            continue;
          }
          const real *line = image + (c * p->height + y) * p->width;
          const int64_t shift = kx - p->padding;
          memset(columns, 0, (size_t)begin * sizeof(real));
          if (p->stride == 1)
            memcpy(columns + begin, line + begin + shift, (size_t)(end - begin) * sizeof(real));
          else
            for (int64_t x = begin; x < end; x++) columns[x] = line[x * p->stride + shift];
          memset(columns + end, 0, (size_t)(p->out_width - end) * sizeof(real));
        }
      }
}

/* The transpose of gather: adds to the image */
static void scatter(const convolution_plan *p, const real *columns, int64_t first, int64_t rows, real *image) {
  for (int64_t c = 0; c < p->channels; c++)
    for (int64_t ky = 0; ky < p->kernel_height; ky++)
      for (int64_t kx = 0; kx < p->kernel_width; kx++) {
        int64_t begin, end;
        inside(p, kx, &begin, &end);
        for (int64_t row = first; row < first + rows; row++, columns += p->out_width) {
          const int64_t y = row * p->stride - p->padding + ky, shift = kx - p->padding;
          if (y < 0 || y >= p->height) continue;
          real *line = image + (c * p->height + y) * p->width;
          if (p->stride == 1)
            for (int64_t x = begin; x < end; x++) line[x + shift] += columns[x];
          else
            for (int64_t x = begin; x < end; x++) line[x * p->stride + shift] += columns[x];
        }
      }
}

static void forward(const comba_call *call) {
  const convolution_plan p = measure(&call->input[X].shape, &call->input[WEIGHT].shape, call->attributes);
  const real *x = call->input[X].data, *weight = call->input[WEIGHT].data, *bias = call->input[BIAS].data;
  const int64_t units = p.batch * p.bands, positions = p.out_height * p.out_width;
  real *workspace = call->workspace;
#pragma omp parallel for
  for (int64_t block = 0; block < p.forward_blocks; block++) {
    real *columns = workspace + comba_scratch_of(block, p.forward_blocks) * p.taps * p.band * p.out_width;
    const int64_t end = comba_block_start(units, p.forward_blocks, block + 1);
    for (int64_t unit = comba_block_start(units, p.forward_blocks, block); unit < end; unit++) {
      const int64_t image = unit / p.bands, first = unit % p.bands * p.band;
      const int64_t rows = smaller(p.band, p.out_height - first), count = rows * p.out_width;
      real *y = (real *)call->output[0].data + image * p.filters * positions + first * p.out_width;
      gather(&p, x + image * p.channels * p.height * p.width, first, rows, columns);
      if (bias)
        for (int64_t filter = 0; filter < p.filters; filter++)
          for (int64_t i = 0; i < count; i++) y[filter * positions + i] = bias[filter];
      comba_gemm_serial('N', 'N', p.filters, count, p.taps, 1, weight, p.taps, columns, count, bias ? 1 : 0, y,
                        positions);
    }
  }
}

/* One image: its part of dx, and its share of the block's weight gradient (O, taps) and bias gradient (O). `start` is
 * set for the first image of a block. */
static void backward_image(const convolution_plan *p, const comba_call *call, int64_t image, bool start, real *columns,
                           real *dweight, real *dbias) {
  const int64_t positions = p->out_height * p->out_width, pixels = p->channels * p->height * p->width;
  const real *dy = (const real *)call->output_gradient[0].data + image * p->filters * positions;
  real *dx = call->input_gradient[X].data;
  if (dx) {
    dx += image * pixels;
    if (!call->accumulate[X]) memset(dx, 0, (size_t)pixels * sizeof(real));
  }
  for (int64_t first = 0; first < p->out_height; first += p->band) {
    const int64_t rows = smaller(p->band, p->out_height - first), count = rows * p->out_width;
    const real *band = dy + first * p->out_width;
    if (call->input_gradient[WEIGHT].data) {
      gather(p, (const real *)call->input[X].data + image * pixels, first, rows, columns);
      comba_gemm_serial('N', 'T', p->filters, p->taps, count, 1, band, positions, columns, count,
                        start && first == 0 ? 0 : 1, dweight, p->taps);
    }
    if (dx) {
      comba_gemm_serial('T', 'N', p->taps, count, p->filters, 1, call->input[WEIGHT].data, p->taps, band, positions, 0,
                        columns, count);
      scatter(p, columns, first, rows, dx);
    }
  }
  if (call->input_gradient[BIAS].data)
    for (int64_t filter = 0; filter < p->filters; filter++) {
      real sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < positions; i++) sum += dy[filter * positions + i];
      dbias[filter] = sum + (start ? 0 : dbias[filter]);
    }
}

/* sums (n) = or += the rows of partial (blocks, n), in order */
static void add_blocks(const real *partial, int64_t blocks, int64_t n, bool accumulate, real *sums) {
#pragma omp parallel for
  for (int64_t i = 0; i < n; i++) {
    real sum = accumulate ? sums[i] : 0;
    for (int64_t block = 0; block < blocks; block++) sum += partial[block * n + i];
    sums[i] = sum;
  }
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 3)) return;
  const convolution_plan p = measure(&call->input[X].shape, &call->input[WEIGHT].shape, call->attributes);
  const int64_t blocks = p.backward_blocks, weights = p.filters * p.taps;
  real *columns = call->workspace;                                  /* (blocks, taps band W') */
  real *dweight = columns + blocks * p.taps * p.band * p.out_width; /* (blocks, O taps) */
  real *dbias = dweight + blocks * weights;                         /* (blocks, O) */
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t start = comba_block_start(p.batch, blocks, block),
                  end = comba_block_start(p.batch, blocks, block + 1);
    real *own = columns + comba_scratch_of(block, blocks) * p.taps * p.band * p.out_width;
    for (int64_t image = start; image < end; image++)
      backward_image(&p, call, image, image == start, own, dweight + block * weights, dbias + block * p.filters);
  }
  if (call->input_gradient[WEIGHT].data)
    add_blocks(dweight, blocks, weights, call->accumulate[WEIGHT], call->input_gradient[WEIGHT].data);
  if (call->input_gradient[BIAS].data)
    add_blocks(dbias, blocks, p.filters, call->accumulate[BIAS], call->input_gradient[BIAS].data);
}

static const comba_case cases[] = {
    {.name = "3 x 3, padding 1, bias",
     .attributes = &(const comba_window_attributes){.padding = 1},
     .input = {{COMBA_SHAPE(2, 3, 7, 5)}, {COMBA_SHAPE(4, 3, 3, 3)}, {COMBA_SHAPE(4)}}},
    {.name = "no bias, stride 2, 2 x 3 window",
     .attributes = &(const comba_window_attributes){.stride = 2, .padding = 1},
     .input = {{COMBA_SHAPE(3, 2, 6, 9)}, {COMBA_SHAPE(5, 2, 2, 3)}}},
    {.name = "no attributes", .input = {{COMBA_SHAPE(1, 2, 5, 4)}, {COMBA_SHAPE(3, 2, 2, 2)}, {COMBA_SHAPE(3)}}},
    {.name = "1 x 1, stride 3",
     .attributes = &(const comba_window_attributes){.stride = 3},
     .input = {{COMBA_SHAPE(2, 3, 7, 8)}, {COMBA_SHAPE(2, 3, 1, 1)}, {COMBA_SHAPE(2)}}},
    {.name = "windows wholly in the padding",
     .attributes = &(const comba_window_attributes){.stride = 2, .padding = 4},
     .input = {{COMBA_SHAPE(2, 1, 1, 2)}, {COMBA_SHAPE(2, 1, 3, 3)}, {COMBA_SHAPE(2)}}},
    {.name = "several bands and images a block",
     .attributes = &(const comba_window_attributes){.stride = 1, .padding = 3},
     .input = {{COMBA_SHAPE(65, 1, 90, 80)}, {COMBA_SHAPE(2, 1, 7, 7)}, {COMBA_SHAPE(2)}}},
    {.name = "32 images of 64 x 32 x 32, 128 filters of 3 x 3",
     .attributes = &(const comba_window_attributes){.stride = 1, .padding = 1},
     .benchmark = true,
     .input = {{COMBA_SHAPE(32, 64, 32, 32)}, {COMBA_SHAPE(128, 64, 3, 3)}, {COMBA_SHAPE(128)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_convolution) = {
    .name = "convolution",
    .formula =
        "y[o, i, j] = sum_{c,k,l} weight[o, c, k, l] x[c, stride i + k - padding, stride j + l - padding] + bias[o]",
    .inputs = 3,
    .outputs = 1,
    .optional_inputs = 1u << BIAS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_window_attributes),
    .backward_inputs = 1u << X | 1u << WEIGHT,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
