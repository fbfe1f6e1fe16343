/* y = n weight + bias,  n = (x - mean) r,  r = 1 / sqrt(variance + epsilon)
 * with u = dy weight:  dx = r (u - mean(u) - n mean(u n));  dweight += dy n;  dbias += dy
 *
 * Saved: mean and r (rows). A weight and bias (H,d) are those of heads: the rows take them in turn. */
#include "ops/cuda_row_span.h"

enum { X, WEIGHT, BIAS };
enum { MEAN, RSTD };

static int64_t turns_of(const comba_shape *weight, const comba_shape *bias) {
  const comba_shape *shape = weight->rank ? weight : bias;
  return shape->rank == 2 ? shape->size[0] : 1;
}

/* What each block adds to the gradients of the weight and of the bias */
static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const int64_t d = x->size[x->rank - 1], rows = comba_shape_elements(x) / d;
  s->backward_workspace = 2 * row_parts(rows, turns_of(&s->input[WEIGHT], &s->input[BIAS]), d) * d;
  return COMBA_OK;
}

/* The sum of f(i) over the values of a thread that lie before the row's end */
template <class L, class F> static __device__ float span_sum(int64_t first, int64_t d, F f) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < L::N * L::PACKETS; i++)
    if (row_span<L, float>::column(first, i / L::N) < d) sum += f(i);
  return sum;
}

template <class L, class T>
static __global__ void norm(const T *x, const float *weight, const float *bias, int64_t turns, float epsilon,
                            int64_t rows, int64_t d, T *y, float *means, float *rstd) {
  const int64_t row = own_row<L>(), turn = turns > 1 ? row % turns * d : 0;
  if (row >= rows) return;
  x += row * d;
  row_span<L, T> z;
  row_span<L, float> w, b; /* on their way during the sums */
  if (weight) w.load(weight + turn, 0, d);
  if (bias) b.load(bias + turn, 0, d);
  float sum = 0, squares = 0;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    z.load(x, first, d);
    sum += span_sum<L>(first, d, [&](int i) { return z[i]; });
  }
  const float mean = row_sum<L>(sum, 0) / (float)d;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    if (d > L::SPAN) z.load(x, first, d);
    squares += span_sum<L>(first, d, [&](int i) { return (z[i] - mean) * (z[i] - mean); });
  }
  const float r = rsqrtf(row_sum<L>(squares, 1) / (float)d + epsilon);
  for (int64_t first = 0; first < d; first += L::SPAN) {
    if (weight && first) w.load(weight + turn, first, d);
    if (bias && first) b.load(bias + turn, first, d);
    if (d > L::SPAN) z.load(x, first, d);
    put_span<L>(y + row * d, first, d, false,
                [&](int i) { return (z[i] - mean) * r * (weight ? w[i] : 1) + (bias ? b[i] : 0); });
  }
  if (!means || threadIdx.x) return;
  means[row] = mean;
  rstd[row] = r;
}

/* What a thread needs of a span of a row; `there`: it is one */
template <class L, class T> struct gradient_span {
  row_span<L, T> x, dy;
  float mean, r;

  __device__ void load(const T *x_rows, const T *dy_rows, const float *means, const float *rstd, int64_t row,
                       int64_t first, int64_t d, bool there) {
    x.load(x_rows + row * d, first, there ? d : 0);
    dy.load(dy_rows + row * d, first, there ? d : 0);
    mean = means[row];
    r = rstd[row];
  }
  /* Adds to the sums of u and of u n; dy is zero behind the row's end. */
  __device__ void add(const row_span<L, float> &w, float no_weight, float *level, float *projection) const {
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++) {
      const float u = dy[i] * (w[i] + no_weight);
      *level += u;
      *projection += u * (x[i] - mean) * r;
    }
  }
};

/* to_weight, to_bias (blocks, d): what each block adds to the gradients */
template <class L, class T>
static __global__ void __launch_bounds__(L::LANES *L::GROUPS, row_blocks_at_once<L, T>())
    norm_gradient(const T *x, const float *weight, int64_t turns, const float *means, const float *rstd, const T *dy,
                  int64_t rows, int64_t d, T *dx, bool accumulate, float *to_weight, float *to_bias) {
  const float no_weight = weight ? 0 : 1;
  if (weight) weight += blockIdx.x % turns * d;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    float weight_sum[L::N * L::PACKETS] = {}, bias_sum[L::N * L::PACKETS] = {};
    row_span<L, float> w;
    w.load(weight, first, weight ? d : 0);
    gradient_span<L, T> next;
    int64_t row = part_row<L>(turns);
    next.load(x, dy, means, rstd, min(row, rows - 1), first, d, row < rows);
    for (; row < rows; row += part_step<L>()) {
      const gradient_span<L, T> a = next;
      const int64_t later = row + part_step<L>();
      next.load(x, dy, means, rstd, min(later, rows - 1), first, d, later < rows);
      float level = 0, projection = 0;
      a.add(w, no_weight, &level, &projection);
      for (int64_t other = 0; other < d && d > L::SPAN; other += L::SPAN) {
        gradient_span<L, T> b;
        row_span<L, float> weights;
        if (other == first) continue;
        b.load(x, dy, means, rstd, row, other, d, true);
        weights.load(weight, other, weight ? d : 0);
        b.add(weights, no_weight, &level, &projection);
      }
      level = row_sum<L>(level, 0) / (float)d;
      projection = row_sum<L>(projection, 1) / (float)d;
#pragma unroll
      for (int i = 0; i < L::N * L::PACKETS; i++) {
        weight_sum[i] += a.dy[i] * (a.x[i] - a.mean) * a.r;
        bias_sum[i] += a.dy[i];
      }
      if (dx)
        put_span<L>(dx + row * d, first, d, accumulate, [&](int i) {
          return a.r * (a.dy[i] * (w[i] + no_weight) - level - (a.x[i] - a.mean) * a.r * projection);
        });
    }
    if (to_weight) put_part<L>(to_weight + blockIdx.x * d, first, d, weight_sum);
    if (to_bias) put_part<L>(to_bias + blockIdx.x * d, first, d, bias_sum);
  }
}

template <class T> static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const int64_t turns = turns_of(&call->input[WEIGHT].shape, &call->input[BIAS].shape);
  const float epsilon = (float)((const comba_norm_attributes *)call->attributes)->epsilon;
  const T *x = (const T *)call->input[X].data;
  const float *weight = (const float *)call->input[WEIGHT].data, *bias = (const float *)call->input[BIAS].data;
  T *y = (T *)call->output[0].data;
  with_row_layout(d, cuda_rows_pack(d, x, weight, bias, y), [&](auto layout) {
    typedef decltype(layout) L;
    norm<L><<<row_blocks<L>(rows), row_threads<L>(), 0, comba_cuda_stream()>>>(
        x, weight, bias, turns, epsilon, rows, d, y, (float *)call->saved[MEAN].data, (float *)call->saved[RSTD].data);
  });
  comba_cuda_note(cudaGetLastError(), "layer_norm");
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const int64_t turns = turns_of(&call->input[WEIGHT].shape, &call->input[BIAS].shape),
                parts = row_parts(rows, turns, d);
  const T *x = (const T *)call->input[X].data, *dy = (const T *)call->output_gradient[0].data;
  const float *weight = (const float *)call->input[WEIGHT].data;
  const float *means = (const float *)call->saved[MEAN].data, *rstd = (const float *)call->saved[RSTD].data;
  T *dx = (T *)call->input_gradient[X].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *dbias = (float *)call->input_gradient[BIAS].data;
  float *partial = (float *)call->workspace, *to_weight = dweight ? partial : NULL;
  float *to_bias = dbias ? partial + parts * d : NULL;
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << WEIGHT | 1u << BIAS)) return;
  with_row_layout(d, cuda_rows_pack(d, x, dy, weight, dx, to_weight, to_bias), [&](auto layout) {
    typedef decltype(layout) L;
    norm_gradient<L><<<(unsigned)parts, row_threads<L>(), 0, comba_cuda_stream()>>>(
        x, weight, turns, means, rstd, dy, rows, d, dx, call->accumulate[X], to_weight, to_bias);
  });
  comba_cuda_note(cudaGetLastError(), "layer_norm, backward");
  if (dweight) comba_cuda_sum_rows(to_weight, parts / turns, turns * d, call->accumulate[WEIGHT], dweight);
  if (dbias) comba_cuda_sum_rows(to_bias, parts / turns, turns * d, call->accumulate[BIAS], dbias);
}

COMBA_CUDA_ROW(layer_norm, infer);
