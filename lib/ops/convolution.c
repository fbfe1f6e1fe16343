/* For each image y (O, H' W') = weight (O, C kh kw) columns (C kh kw, H' W') + bias (O); column (y, x) of `columns` is
 * the window whose first pixel is (stride y - padding, stride x - padding), zero outside the image
 * dx: weight^T dy, each window added back in its place;  dweight += dy columns^T;  dbias += sums of dy over B, H', W'
 *
 * `columns` is never whole: a band of output rows of one image passes through the workspace at a time. The batch is cut
 * into blocks that run beside each other, each with a band and, in backward, a weight gradient of its own; those are
 * added in block order.
 *
 * With stride 1, and a window that is wider than the padding, there are no columns where the processor has vectors
 * (convolution_direct.h): y and dweight come from the padded image, and dx is itself such a convolution, of the padded dy with
 * the weights turned: (C, O, kh, kw), each window mirrored. */
#include "core/gemm.h"
#include "ops/convolution_direct.h"
#include "ops/gradient.h"
#include "ops/window.h"
#include "scan/chunk_product.h"

enum { X, WEIGHT, BIAS };
enum { BAND = 1 << 18 };     /* reals of a band: it stays in a core's own cache between its making and the product */
enum { PARTIALS = 1 << 20 }; /* reals of all partial weight gradients, where that leaves at least MINIMUM blocks */
enum { MINIMUM = 16 };
enum { DIRECT = 1 << 19 }; /* reals of scratch for one image without columns: more would leave the core's own cache */

typedef struct convolution_plan {
  int64_t batch, channels, height, width;
  int64_t filters, kernel_height, kernel_width, stride, padding;
  int64_t out_height, out_width;
  int64_t taps;            /* C kh kw */
  int64_t band, bands;     /* output rows in a band, bands in an image */
  int64_t forward_blocks;  /* of bands */
  int64_t backward_blocks; /* of images: two bands of one image add to the same pixels */
  bool direct;             /* without columns */
  padded_image input, output;
  int64_t filter_stride;                              /* filters of a position of dy, in whole vectors */
  int64_t shared;                                     /* reals that all blocks read: offsets and turned weights */
  int64_t forward_scratch, backward_scratch, partial; /* reals of a block */
} convolution_plan;

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

/* Whether and in how much scratch the images pass without columns. */
static void measure_direct(convolution_plan *p) {
  if (!COMBA_VECTORS || p->stride != 1 || p->padding >= smaller(p->kernel_height, p->kernel_width)) return;
  /* the products below stay in range */
  if (larger(p->kernel_height, p->kernel_width) > DIRECT_UNIT || larger(p->width, p->out_width) > DIRECT) return;
  if (p->channels * p->height > DIRECT || p->filters * p->out_height > DIRECT) return;
  p->input = (padded_image){.channels = p->channels,
                            .height = p->height,
                            .width = p->width,
                            .top = p->padding,
                            .left = p->padding,
                            .window_height = p->kernel_height,
                            .window_width = p->kernel_width};
  p->output = (padded_image){.channels = p->filters,
                             .height = p->out_height,
                             .width = p->out_width,
                             .top = p->kernel_height - 1 - p->padding,
                             .left = p->kernel_width - 1 - p->padding,
                             .window_height = p->kernel_height,
                             .window_width = p->kernel_width};
  const int64_t image = padded_size(&p->input), gradient = padded_size(&p->output);
  const int64_t by_position = p->filter_stride * p->out_height * p->out_width;
  p->direct = image + larger(gradient, by_position) <= DIRECT;
  if (!p->direct) return;
  p->forward_scratch = image;
  p->backward_scratch = image + larger(gradient, by_position);
  p->shared = whole_tiles(p->taps) + whole_tiles(padded_taps(&p->output)) + p->filters * p->taps;
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
  p.filter_stride = (p.filters + DIRECT_UNIT - 1) / DIRECT_UNIT * DIRECT_UNIT;
  measure_direct(&p);
  if (!p.direct) p.forward_scratch = p.backward_scratch = p.taps * p.band * p.out_width;
  p.partial = p.direct ? p.filter_stride * whole_tiles(p.taps) : p.filters * p.taps;
  p.forward_blocks = comba_blocks(p.batch * (p.direct ? 1 : p.bands), 1);
  p.backward_blocks = smaller(comba_blocks(p.batch, 1), larger(MINIMUM, PARTIALS / p.partial));
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
  s->forward_workspace = p.shared + p.forward_blocks * p.forward_scratch;
  s->backward_workspace = p.shared + p.backward_blocks * (p.backward_scratch + p.partial + p.filters);
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

static void forward_columns(convolution_plan p, const comba_call *call) {
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

/* As forward_columns, from padded images. */
static void forward_direct(convolution_plan p, const comba_call *call) {
  p.input.offset = call->workspace;
  convolution_offsets(&p.input);
  const int64_t pixels = p.channels * p.height * p.width, positions = p.out_height * p.out_width;
#pragma omp parallel for firstprivate(p)
  for (int64_t block = 0; block < p.forward_blocks; block++) {
    p.input.pixels = (real *)call->workspace + p.shared + comba_scratch_of(block, p.forward_blocks) * p.forward_scratch;
    const int64_t end = comba_block_start(p.batch, p.forward_blocks, block + 1);
    for (int64_t image = comba_block_start(p.batch, p.forward_blocks, block); image < end; image++) {
      convolution_pad((const real *)call->input[X].data + image * pixels, &p.input);
      real *y = (real *)call->output[0].data + image * p.filters * positions;
      convolution_windows(&p.input, p.filters, call->input[WEIGHT].data, call->input[BIAS].data, false, y);
    }
  }
}

static void forward(const comba_call *call) {
  const convolution_plan p = measure(&call->input[X].shape, &call->input[WEIGHT].shape, call->attributes);
  if (p.direct)
    forward_direct(p, call);
  else
    forward_columns(p, call);
}

/* One image: its part of dx, and its share of the block's weight gradient (O, taps). `start` is set for the first image of a
 * block. */
static void backward_image(const convolution_plan *p, const comba_call *call, int64_t image, bool start, real *columns,
                           real *dweight) {
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

/* dbias (O) = or += the sums of one image's dy. */
static void add_to_bias(const convolution_plan *p, const comba_call *call, int64_t image, bool start, real *dbias) {
  const int64_t positions = p->out_height * p->out_width;
  const real *dy = (const real *)call->output_gradient[0].data + image * p->filters * positions;
  if (!call->input_gradient[BIAS].data) return;
  for (int64_t filter = 0; filter < p->filters; filter++) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < positions; i++) sum += dy[filter * positions + i];
    dbias[filter] = sum + (start ? 0 : dbias[filter]);
  }
}

/* turned (C, O kh kw): each window mirrored */
static void turn_weights(const convolution_plan *p, const real *weight, real *turned) {
  const int64_t window = p->kernel_height * p->kernel_width;
  for (int64_t c = 0; c < p->channels; c++)
    for (int64_t filter = 0; filter < p->filters; filter++)
      for (int64_t i = 0; i < window; i++) *turned++ = weight[(filter * p->channels + c) * window + window - 1 - i];
}

/* What all blocks read, in the workspace: the offsets of taps and, returned, the turned weights. */
static const real *place(convolution_plan *p, const comba_call *call) {
  p->input.offset = call->workspace;
  p->output.offset = p->input.offset + whole_tiles(p->taps);
  real *turned = (real *)call->workspace + whole_tiles(p->taps) + whole_tiles(padded_taps(&p->output));
  convolution_offsets(&p->input);
  convolution_offsets(&p->output);
  if (call->input_gradient[X].data) turn_weights(p, call->input[WEIGHT].data, turned);
  return turned;
}

/* One image, as backward_image; dweight (taps, filter_stride). `p` has the pixels of the block. */
static void backward_image_direct(const convolution_plan *p, const comba_call *call, int64_t image, bool start,
                                  const real *turned, real *dweight) {
  const int64_t pixels = p->channels * p->height * p->width, positions = p->out_height * p->out_width;
  const real *dy = (const real *)call->output_gradient[0].data + image * p->filters * positions;
  if (call->input_gradient[WEIGHT].data) {
    real *by_position = p->output.pixels; /* before dy is padded there */
    convolution_pad((const real *)call->input[X].data + image * pixels, &p->input);
    chunk_transpose(p->filters, positions, dy, positions, by_position, p->filter_stride);
    convolution_correlate(&p->input, by_position, p->filter_stride, !start, dweight);
  }
  if (!call->input_gradient[X].data) return;
  convolution_pad(dy, &p->output);
  real *dx = (real *)call->input_gradient[X].data + image * pixels;
  convolution_windows(&p->output, p->channels, turned, NULL, call->accumulate[X], dx);
}

/* dweight (O, taps) = or += the sum of the rows of partial (blocks, taps filter_stride), in order; partial is used up */
static void add_turned_blocks(const convolution_plan *p, real *partial, bool accumulate, real *dweight) {
  add_blocks(partial + p->partial, p->backward_blocks - 1, p->partial, true, partial);
  for (int64_t filter = 0; filter < p->filters; filter++)
    for (int64_t tap = 0; tap < p->taps; tap++) {
      real *to = dweight + filter * p->taps + tap;
      *to = (accumulate ? *to : 0) + partial[tap * p->filter_stride + filter];
    }
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 3)) return;
  convolution_plan p = measure(&call->input[X].shape, &call->input[WEIGHT].shape, call->attributes);
  const int64_t blocks = p.backward_blocks;
  real *scratch = (real *)call->workspace + p.shared;    /* (blocks, backward_scratch) */
  real *dweight = scratch + blocks * p.backward_scratch; /* (blocks, partial) */
  real *dbias = dweight + blocks * p.partial;            /* (blocks, O) */
  const real *turned = p.direct ? place(&p, call) : NULL;
#pragma omp parallel for firstprivate(p)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t start = comba_block_start(p.batch, blocks, block),
                  end = comba_block_start(p.batch, blocks, block + 1);
    /* columns or, without, the padded images */
    real *own = scratch + comba_scratch_of(block, blocks) * p.backward_scratch;
    p.input.pixels = own;
    p.output.pixels = own + p.forward_scratch;
    for (int64_t image = start; image < end; image++) {
      if (p.direct)
        backward_image_direct(&p, call, image, image == start, turned, dweight + block * p.partial);
      else
        backward_image(&p, call, image, image == start, own, dweight + block * p.partial);
      add_to_bias(&p, call, image, image == start, dbias + block * p.filters);
    }
  }
  real *sum = call->input_gradient[WEIGHT].data;
  if (sum && p.direct)
    add_turned_blocks(&p, dweight, call->accumulate[WEIGHT], sum);
  else if (sum)
    add_blocks(dweight, blocks, p.partial, call->accumulate[WEIGHT], sum);
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
    {.name = "lines of 8 windows",
     .attributes = &(const comba_window_attributes){.stride = 1, .padding = 1},
     .input = {{COMBA_SHAPE(3, 4, 8, 8)}, {COMBA_SHAPE(6, 4, 3, 3)}}},
    {.name = "1 x 1, stride 3",
     .attributes = &(const comba_window_attributes){.stride = 3},
     .input = {{COMBA_SHAPE(2, 3, 7, 8)}, {COMBA_SHAPE(2, 3, 1, 1)}, {COMBA_SHAPE(2)}}},
    {.name = "windows wholly in the padding",
     .attributes = &(const comba_window_attributes){.stride = 2, .padding = 4},
     .input = {{COMBA_SHAPE(2, 1, 1, 2)}, {COMBA_SHAPE(2, 1, 3, 3)}, {COMBA_SHAPE(2)}}},
    {.name = "without columns: 3 x 5 window, rows and filters no multiple of a vector",
     .attributes = &(const comba_window_attributes){.padding = 2},
     .input = {{COMBA_SHAPE(3, 5, 9, 19)}, {COMBA_SHAPE(18, 5, 3, 5)}, {COMBA_SHAPE(18)}}},
    {.name = "without columns: several images a block",
     .attributes = &(const comba_window_attributes){.padding = 1},
     .input = {{COMBA_SHAPE(70, 2, 4, 6)}, {COMBA_SHAPE(9, 2, 3, 3)}}},
    {.name = "several bands and images a block",
     .attributes = &(const comba_window_attributes){.stride = 1, .padding = 7},
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
