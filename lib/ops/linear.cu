/* y (..., n) = x (..., m) weight (n, m)^T + bias (n);  dx = dy weight;  dweight += dy^T x;  dbias += column sums of dy */
#include "ops/cuda_few_rows.h"
#include "ops/cuda_thin.h"
#include "ops/cuda_together.h"

enum { X, WEIGHT, BIAS };
enum { ROWS = 64 }; /* of dy that one thread adds up before the partial sums meet */

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const int64_t n = s->input[WEIGHT].size[0], m = s->input[WEIGHT].size[1], rows = comba_shape_elements(x) / m;
  const int64_t for_bias = s->input[BIAS].rank ? (rows + ROWS - 1) / ROWS * n : 0;
  const int64_t for_weight = n <= THIN_COLUMNS ? thin_parts(rows) * n * m : 0;
  s->backward_workspace = for_bias > for_weight ? for_bias : for_weight;
  return COMBA_OK;
}

template <class T> static thin_product<T> thin(const comba_call *call) {
  const int64_t n = call->input[WEIGHT].shape.size[0], m = call->input[WEIGHT].shape.size[1];
  return {(const T *)call->input[X].data,
          comba_cuda_weight<T>(call->input[WEIGHT].data),
          call->input[BIAS].data ? comba_cuda_weight<T>(call->input[BIAS].data) : NULL,
          comba_shape_elements(&call->input[X].shape) / m,
          (int)n,
          (int)m};
}

/* Of one depth and with inputs of one shape: a launch. */
template <class T> int cuda_linear_together(const comba_forward *forwards, int count) {
  few_rows_product<T> p = {};
  for (int &i = p.weights; i < count && i < FEW_WEIGHTS; i++) {
    if (forwards[i].id != COMBA_OP_linear || forwards[i].depth != forwards->depth) break;
    const thin_product<T> one = thin<T>(forwards[i].call);
    if (!thin_aligned<T>(one.x, one.weight, one.k) || !few_rows_fit<T>(one.rows, one.n, one.k)) break;
    if (i && (one.rows != p.rows || one.k != p.k)) break;
    p.rows = (int)one.rows;
    p.k = one.k;
    p.of[i] = {one.x, one.weight, one.bias, (T *)forwards[i].call->output[0].data, one.n, 0};
  }
  if (p.weights) few_rows_multiply(p);
  return p.weights;
}
template int cuda_linear_together<float>(const comba_forward *, int);
template int cuda_linear_together<bfloat16>(const comba_forward *, int);

template <class T> static void forward(const comba_call *call) {
  const int64_t n = call->input[WEIGHT].shape.size[0], m = call->input[WEIGHT].shape.size[1];
  const thin_product<T> narrow = thin<T>(call);
  if (thin_aligned<T>(narrow.x, narrow.weight, m)) {
    T *y = (T *)call->output[0].data;
    if (few_rows_fit<T>(narrow.rows, n, m))
      return few_rows_multiply<T>(
          {(int)narrow.rows, (int)m, 1, {{narrow.x, narrow.weight, narrow.bias, y, (int)n, 0}}});
    if (thin_columns<T>(n, m)) return thin_multiply_columns(narrow, y);
  }
  comba_cuda_product product = {};
  product.transpose_b = true;
  product.m = comba_shape_elements(&call->input[X].shape) / m;
  product.n = n;
  product.k = m;
  product.lda = product.ldb = m;
  product.ldc = n;
  product.a = call->input[X].data;
  product.b = comba_cuda_weight<T>(call->input[WEIGHT].data);
  product.bias = call->input[BIAS].data ? comba_cuda_weight<T>(call->input[BIAS].data) : NULL;
  product.c = call->output[0].data;
  comba_cuda_multiply(&product, comba_cuda_type_of<T>(), sizeof(T) == sizeof(float));
}

template <class T> static void backward(const comba_call *call) {
  const int64_t n = call->input[WEIGHT].shape.size[0], m = call->input[WEIGHT].shape.size[1];
  const int64_t rows = comba_shape_elements(&call->input[X].shape) / m;
  const T *dy = (const T *)call->output_gradient[0].data;
  const thin_product<T> narrow = thin<T>(call);
  const bool few = thin_columns<T>(n, m) && thin_aligned<T>(narrow.x, narrow.weight, m);
  T *dx = (T *)call->input_gradient[X].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data;
  if (dx && few && comba_cuda_aligned(dx, 16)) {
    thin_input_gradient(narrow, dy, call->accumulate[X], dx);
  } else if (dx) {
    comba_cuda_product product = {};
    product.m = rows;
    product.n = m;
    product.k = n;
    product.lda = n;
    product.ldb = product.ldc = m;
    product.a = dy;
    product.b = comba_cuda_weight<T>(call->input[WEIGHT].data);
    product.c = dx;
    product.accumulate = call->accumulate[X];
    comba_cuda_multiply(&product, comba_cuda_type_of<T>(), sizeof(T) == sizeof(float));
  }
  if (dweight && few) {
    thin_weight_gradient(narrow, dy, (float *)call->workspace, call->accumulate[WEIGHT], dweight);
  } else if (dweight) {
    comba_cuda_product product = {};
    product.transpose_a = true;
    product.m = n;
    product.n = m;
    product.k = rows;
    product.lda = n;
    product.ldb = product.ldc = m;
    product.a = dy;
    product.b = call->input[X].data;
    product.c = dweight;
    product.accumulate = call->accumulate[WEIGHT];
    comba_cuda_multiply(&product, comba_cuda_type_of<T>(), true);
  }
  float *dbias = (float *)call->input_gradient[BIAS].data;
  if (!dbias) return;
  const int64_t parts = (rows + ROWS - 1) / ROWS;
  float *partial = (float *)call->workspace; /* (parts, n) */
  comba_each(parts * n, [=] __device__(int64_t i) {
    const int64_t part = i / n, column = i % n, end = min(rows, (part + 1) * ROWS);
    float sum = 0;
    for (int64_t row = part * ROWS; row < end; row++) sum += load(dy + row * n + column);
    partial[i] = sum;
  });
  comba_cuda_sum_rows(partial, parts, n, call->accumulate[BIAS], dbias);
}

COMBA_CUDA_ROW(linear, infer);
