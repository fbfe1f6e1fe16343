/* y (..., n) = x (..., m) weight (n, m)^T + bias (n)
 * dx = dy weight;  dweight += dy^T x;  dbias += column sums of dy
 *
 * Where the processor has vectors and weight stays in a core's own cache, y and dx come from the products of chunks, a few rows
 * at a time: a general product would copy the weight for every tile. */
#include "core/gemm.h"
#include "core/op.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "scan/chunk_product.h"

enum { X, WEIGHT, BIAS };
enum { ROWS = 64, UNIT = 16, DEPTH_MOST = 512, WEIGHT_MOST = 1 << 17 };
enum { SUM_ROWS = 512, SUM_BLOCKS = 8 }; /* of dweight: the least rows of a block, the most blocks */

/* Whether (count, depth) times (depth, width) passes ROWS rows at a time. */
static bool by_rows(int64_t count, int64_t depth, int64_t width) {
  return COMBA_VECTORS && count >= ROWS && width % UNIT == 0 && depth <= DEPTH_MOST && width <= WEIGHT_MOST / depth;
}

/* to (count, width) = from (count, depth) weight (depth, width) + bias; without one = or += the product */
static void multiply_rows(int64_t count, int64_t depth, int64_t width, const real *from, const real *weight,
                          const real *bias, bool accumulate, real *to) {
#pragma omp parallel for
  for (int64_t row = 0; row < count; row += ROWS) {
    const int64_t part = count - row < ROWS ? count - row : ROWS;
    for (int64_t i = row; i < row + part && bias; i++) memcpy(to + i * width, bias, (size_t)width * sizeof(real));
    chunk_product('N', 'N', part, width, depth, 1, from + row * depth, depth, weight, width, bias || accumulate,
                  to + row * width, width);
  }
}

/* Blocks of rows that are added up beside each other for dweight (n, m); 1 where the general product cuts the weight itself into
 * tiles. A small weight cut so would leave tiles too small for the best rate. */
static int64_t sum_blocks(int64_t count, int64_t n, int64_t m) {
  const int64_t blocks = count / SUM_ROWS;
  if (n < ROWS || m < ROWS || m > WEIGHT_MOST / n || blocks < 1) return 1;
  return blocks > SUM_BLOCKS ? SUM_BLOCKS : blocks;
}

/* dweight (n, m) = or += dy^T x: the first block there, the others in partial (blocks - 1, n, m), added in order */
static void sum_rows(int64_t count, int64_t n, int64_t m, const real *dy, const real *x, bool accumulate, real *partial,
                     real *dweight) {
  const int64_t blocks = sum_blocks(count, n, m);
#pragma omp parallel for
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t row = comba_block_start(count, blocks, block), end = comba_block_start(count, blocks, block + 1);
    comba_gemm_serial('T', 'N', n, m, end - row, 1, dy + row * n, n, x + row * m, m, !block && accumulate ? 1 : 0,
                      block ? partial + (block - 1) * n * m : dweight, m);
  }
#pragma omp parallel for
  for (int64_t i = 0; i < n; i++)
    for (int64_t block = 1; block < blocks; block++) {
      const real *from = partial + ((block - 1) * n + i) * m;
      for (int64_t j = 0; j < m; j++) dweight[i * m + j] += from[j];
    }
}

static int64_t rows(const comba_shape *shape) {
  return comba_shape_elements(shape) / shape->size[shape->rank - 1];
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *weight = &s->input[WEIGHT], *bias = &s->input[BIAS];
  if (x->rank < 1) return comba_fail_shape(s, X, "(..., m)");
  const int64_t m = x->size[x->rank - 1];
  if (weight->rank != 2 || weight->size[1] != m) return comba_fail_shape(s, WEIGHT, "(n, m) with m the last size of x");
  const int64_t n = weight->size[0];
  if (bias->rank && (bias->rank != 1 || bias->size[0] != n)) return comba_fail_shape(s, BIAS, "(n)");
  s->outputs = 1;
  s->output[0] = *x;
  s->output[0].size[x->rank - 1] = n;
  s->forward_workspace = by_rows(rows(x), m, n) ? m * n : 0;
  const int64_t for_bias = bias->rank ? COMBA_BLOCKS * n : 0, for_weight = (sum_blocks(rows(x), n, m) - 1) * n * m;
  s->backward_workspace = for_bias > for_weight ? for_bias : for_weight;
  s->forward_flops = 2.0 * (double)rows(x) * (double)m * (double)n;
  s->backward_flops = 2 * s->forward_flops;
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const int64_t n = call->input[WEIGHT].shape.size[0], m = call->input[WEIGHT].shape.size[1];
  const int64_t count = rows(&call->input[X].shape);
  const real *bias = call->input[BIAS].data;
  real *y = call->output[0].data;
  if (by_rows(count, m, n)) {
    chunk_transpose(n, m, call->input[WEIGHT].data, m, call->workspace, n);
    multiply_rows(count, m, n, call->input[X].data, call->workspace, bias, false, y);
  } else {
    if (bias) {
#pragma omp parallel for
      for (int64_t row = 0; row < count; row++) memcpy(y + row * n, bias, (size_t)n * sizeof(real));
    }
    comba_gemm('N', 'T', count, n, m, 1, call->input[X].data, m, call->input[WEIGHT].data, m, bias ? 1 : 0, y, n);
  }
}

static void backward(const comba_call *call) {
  const int64_t n = call->input[WEIGHT].shape.size[0], m = call->input[WEIGHT].shape.size[1];
  const int64_t count = rows(&call->input[X].shape);
  const real *dy = call->output_gradient[0].data;
  real *dx = call->input_gradient[X].data, *dweight = call->input_gradient[WEIGHT].data;
  real *dbias = call->input_gradient[BIAS].data;
  const real keep = call->accumulate[X] ? 1 : 0;
  if (dx && by_rows(count, n, m))
    multiply_rows(count, n, m, dy, call->input[WEIGHT].data, NULL, call->accumulate[X], dx);
  else if (dx)
    comba_gemm('N', 'N', count, m, n, 1, dy, n, call->input[WEIGHT].data, m, keep, dx, m);
  if (dweight && sum_blocks(count, n, m) > 1)
    sum_rows(count, n, m, dy, call->input[X].data, call->accumulate[WEIGHT], call->workspace, dweight);
  else if (dweight)
    comba_gemm('T', 'N', n, m, count, 1, dy, n, call->input[X].data, m, call->accumulate[WEIGHT] ? 1 : 0, dweight, m);
  if (dbias) {
    const int64_t blocks = comba_blocks(count, 64);
    real *partial = call->workspace; /* (blocks, n) */
#pragma omp parallel for
    for (int64_t block = 0; block < blocks; block++) {
      real *sum = partial + block * n;
      memset(sum, 0, (size_t)n * sizeof(real));
      for (int64_t row = comba_block_start(count, blocks, block); row < comba_block_start(count, blocks, block + 1);
           row++)
        for (int64_t j = 0; j < n; j++) sum[j] += dy[row * n + j];
    }
    if (!call->accumulate[BIAS]) memset(dbias, 0, (size_t)n * sizeof(real));
    for (int64_t block = 0; block < blocks; block++)
      for (int64_t j = 0; j < n; j++) dbias[j] += partial[block * n + j];
  }
}

static const comba_case cases[] = {
    {.name = "bias", .input = {{COMBA_SHAPE(2, 33, 24)}, {COMBA_SHAPE(40, 24)}, {COMBA_SHAPE(40)}}},
    {.name = "no bias, one row", .input = {{COMBA_SHAPE(1, 7)}, {COMBA_SHAPE(3, 7)}}},
    {.name = "rank 4, more than one tile", .input = {{COMBA_SHAPE(2, 65, 3, 70)}, {COMBA_SHAPE(300, 70)}}},
    {.name = "three rows", .input = {{COMBA_SHAPE(3, 520)}, {COMBA_SHAPE(35, 520)}, {COMBA_SHAPE(35)}}},
    {.name = "three columns", .input = {{COMBA_SHAPE(2, 130, 72)}, {COMBA_SHAPE(3, 72)}, {COMBA_SHAPE(3)}}},
    {.name = "seven columns, 300 rows", .input = {{COMBA_SHAPE(300, 264)}, {COMBA_SHAPE(7, 264)}}},
    {.name = "a few rows at a time", .input = {{COMBA_SHAPE(3, 43, 48)}, {COMBA_SHAPE(80, 48)}, {COMBA_SHAPE(80)}}},
    {.name = "five rows", .input = {{COMBA_SHAPE(5, 1096)}, {COMBA_SHAPE(18, 1096)}, {COMBA_SHAPE(18)}}},
    {.name = "19 rows", .input = {{COMBA_SHAPE(19, 1, 72)}, {COMBA_SHAPE(2120, 72)}, {COMBA_SHAPE(2120)}}},
    {.name = "64 rows", .input = {{COMBA_SHAPE(64, 1, 24)}, {COMBA_SHAPE(4250, 24)}}},
    {.name = "dweight by blocks of rows",
     .input = {{COMBA_SHAPE(3, 400, 66)}, {COMBA_SHAPE(70, 66)}, {COMBA_SHAPE(70)}}},
    {.name = "4096 x 256 x 256", .benchmark = true, .input = {{COMBA_SHAPE(64, 64, 256)}, {COMBA_SHAPE(256, 256)}}},
    {.name = "3136 x 96 x 192", .benchmark = true, .input = {{COMBA_SHAPE(64, 49, 192)}, {COMBA_SHAPE(96, 192)}}},
    {.name = "2048 x 1024 x 1024",
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(1024, 1024)}}},
    {.name = "4 rows, 1024 to 2816", .benchmark = true, .input = {{COMBA_SHAPE(4, 1024)}, {COMBA_SHAPE(2816, 1024)}}},
    {.name = "64 rows, 1024 to 2816", .benchmark = true, .input = {{COMBA_SHAPE(64, 1024)}, {COMBA_SHAPE(2816, 1024)}}},
    {.name = "64 rows, 2816 to 1024", .benchmark = true, .input = {{COMBA_SHAPE(64, 2816)}, {COMBA_SHAPE(1024, 2816)}}},
    {.name = "16384 rows, 1024 to 4", .benchmark = true, .input = {{COMBA_SHAPE(16384, 1024)}, {COMBA_SHAPE(4, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_linear) = {
    .name = "linear",
    .formula = "y = x weight^T + bias",
    .inputs = 3,
    .outputs = 1,
    .optional_inputs = 1u << BIAS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1u << X | 1u << WEIGHT,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
