/* y (B,N,d) = patches (B N, C p p) weight (d, C p p)^T + bias (d); row n of an image's patches is patch n, row-major
 * dpixels = dy weight, each patch back in its place;  dweight += dy^T patches;  dbias += column sums of dy
 *
 * The matrix of patches is never whole: pieces of it, some rows of the patch grid each, pass through the workspace. */
#include "core/gemm.h"
#include "ops/extent.h"
#include "ops/gradient.h"

enum { PIXELS, WEIGHT, BIAS };
enum { PIECE = 1 << 20 }; /* reals of a piece: enough work for all threads, and still in the last-level cache */

typedef struct patch_grid {
  int64_t channels, side;   /* C, p */
  int64_t rows, image_rows; /* rows of patches: in the batch, B H/p, and in an image, H/p */
  int64_t row_patches;      /* W/p */
  int64_t patch, features;  /* C p p, d */
  int64_t piece;            /* rows of patches in a piece */
} patch_grid;

static patch_grid measure(const comba_shape *pixels, const comba_shape *weight) {
  patch_grid g = {.channels = weight->size[1], .side = weight->size[2], .features = weight->size[0]};
  g.image_rows = pixels->size[2] / g.side;
  g.rows = pixels->size[0] * g.image_rows;
  g.row_patches = pixels->size[3] / g.side;
  g.patch = g.channels * g.side * g.side;
  g.piece = PIECE / (g.row_patches * g.patch);
  g.piece = g.piece < 1 ? 1 : (g.piece > g.rows ? g.rows : g.piece);
  return g;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *pixels = &s->input[PIXELS], *weight = &s->input[WEIGHT], *bias = &s->input[BIAS];
  if (!comba_extent_fits(pixels, 4)) return comba_fail_shape(s, PIXELS, "(B, C, H, W)");
  if (!comba_extent_fits(weight, 4) || weight->size[1] != pixels->size[1] || weight->size[2] != weight->size[3])
    return comba_fail_shape(s, WEIGHT, "(d, C, p, p) with C the channels of the pixels");
  if (pixels->size[2] % weight->size[2] || pixels->size[3] % weight->size[2])
    return comba_fail_shape(s, PIXELS, "(B, C, H, W) with H and W multiples of the patch size");
  if (bias->rank && (bias->rank != 1 || bias->size[0] != weight->size[0])) return comba_fail_shape(s, BIAS, "(d)");
  const patch_grid g = measure(pixels, weight);
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(pixels->size[0], g.image_rows * g.row_patches, g.features);
  if (!comba_extent_fits(&s->output[0], 3)) return comba_fail_extent(s, &s->output[0]);
  s->forward_workspace = g.piece * g.row_patches * g.patch;
  s->backward_workspace = s->forward_workspace + (bias->rank ? COMBA_BLOCKS * g.features : 0);
  s->forward_flops = 2.0 * (double)(g.rows * g.row_patches) * (double)g.patch * (double)g.features;
  s->backward_flops = 2 * s->forward_flops;
  return COMBA_OK;
}

/* First pixel of line `line` (0 to p-1) of the patches in row `row` of the batch's grid. */
static int64_t line_start(const patch_grid *g, int64_t row, int64_t channel, int64_t line) {
  const int64_t image = row / g->image_rows, y = row % g->image_rows * g->side + line;
  return ((image * g->channels + channel) * g->image_rows * g->side + y) * g->row_patches * g->side;
}

/* patches (rows row_patches, patch) of `rows` rows from row `first` on */
static void gather(const patch_grid *g, const real *pixels, int64_t first, int64_t rows, real *patches) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; row++)
    for (int64_t channel = 0; channel < g->channels; channel++)
      for (int64_t line = 0; line < g->side; line++) {
        const real *from = pixels + line_start(g, first + row, channel, line);
        real *to = patches + row * g->row_patches * g->patch + (channel * g->side + line) * g->side;
        for (int64_t i = 0; i < g->row_patches; i++)
          memcpy(to + i * g->patch, from + i * g->side, (size_t)g->side * sizeof(real));
      }
}

static void scatter(const patch_grid *g, const real *patches, int64_t first, int64_t rows, bool accumulate,
                    real *pixels) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; row++)
    for (int64_t channel = 0; channel < g->channels; channel++)
      for (int64_t line = 0; line < g->side; line++) {
        const real *from = patches + row * g->row_patches * g->patch + (channel * g->side + line) * g->side;
        real *to = pixels + line_start(g, first + row, channel, line);
        for (int64_t i = 0; i < g->row_patches; i++)
          for (int64_t x = 0; x < g->side; x++)
            to[i * g->side + x] = from[i * g->patch + x] + (accumulate ? to[i * g->side + x] : 0);
      }
}

static void forward(const comba_call *call) {
  const patch_grid g = measure(&call->input[PIXELS].shape, &call->input[WEIGHT].shape);
  const real *bias = call->input[BIAS].data;
  real *y = call->output[0].data, *patches = call->workspace;
  for (int64_t first = 0; first < g.rows; first += g.piece) {
    const int64_t rows = first + g.piece < g.rows ? g.piece : g.rows - first, count = rows * g.row_patches;
    real *piece = y + first * g.row_patches * g.features;
    gather(&g, call->input[PIXELS].data, first, rows, patches);
    if (bias) {
#pragma omp parallel for
      for (int64_t row = 0; row < count; row++)
        memcpy(piece + row * g.features, bias, (size_t)g.features * sizeof(real));
    }
    comba_gemm('N', 'T', count, g.features, g.patch, 1, patches, g.patch, call->input[WEIGHT].data, g.patch,
               bias ? 1 : 0, piece, g.features);
  }
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, 3)) return;
  const patch_grid g = measure(&call->input[PIXELS].shape, &call->input[WEIGHT].shape);
  const real *dy = call->output_gradient[0].data;
  real *dpixels = call->input_gradient[PIXELS].data, *dweight = call->input_gradient[WEIGHT].data;
  real *dbias = call->input_gradient[BIAS].data, *patches = call->workspace;
  for (int64_t first = 0; first < g.rows; first += g.piece) {
    const int64_t rows = first + g.piece < g.rows ? g.piece : g.rows - first, count = rows * g.row_patches;
    const real *piece = dy + first * g.row_patches * g.features;
    if (dweight) {
      gather(&g, call->input[PIXELS].data, first, rows, patches);
      comba_gemm('T', 'N', g.features, g.patch, count, 1, piece, g.features, patches, g.patch,
                 first || call->accumulate[WEIGHT] ? 1 : 0, dweight, g.patch);
    }
    if (dpixels) {
      comba_gemm('N', 'N', count, g.patch, g.features, 1, piece, g.features, call->input[WEIGHT].data, g.patch, 0,
                 patches, g.patch);
      scatter(&g, patches, first, rows, call->accumulate[PIXELS], dpixels);
    }
  }
  if (dbias)
    comba_gradient_columns(dy, g.rows * g.row_patches, g.features, call->accumulate[BIAS],
                           patches + g.piece * g.row_patches * g.patch, dbias);
}

static const comba_case cases[] = {
    {.name = "bias, 2 x 3 grid", .input = {{COMBA_SHAPE(3, 3, 8, 12)}, {COMBA_SHAPE(10, 3, 4, 4)}, {COMBA_SHAPE(10)}}},
    {.name = "no bias, one channel", .input = {{COMBA_SHAPE(2, 1, 9, 6)}, {COMBA_SHAPE(7, 1, 3, 3)}}},
    {.name = "the image is one patch",
     .input = {{COMBA_SHAPE(1, 2, 5, 5)}, {COMBA_SHAPE(4, 2, 5, 5)}, {COMBA_SHAPE(4)}}},
    {.name = "patches of one pixel", .input = {{COMBA_SHAPE(2, 3, 2, 3)}, {COMBA_SHAPE(5, 3, 1, 1)}, {COMBA_SHAPE(5)}}},
    {.name = "several pieces",
     .input = {{COMBA_SHAPE(3, 2, 1024, 208)}, {COMBA_SHAPE(1, 2, 16, 16), .scale = 0.1}, {COMBA_SHAPE(1)}}},
    {.name = "32 images of 224 x 224, patches of 16, d 384",
     .benchmark = true,
     .input = {{COMBA_SHAPE(32, 3, 224, 224)}, {COMBA_SHAPE(384, 3, 16, 16)}, {COMBA_SHAPE(384)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_patch_embedding) = {
    .name = "patch_embedding",
    .formula = "y = patches(pixels) weight^T + bias",
    .inputs = 3,
    .outputs = 1,
    .optional_inputs = 1u << BIAS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1u << PIXELS | 1u << WEIGHT,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
