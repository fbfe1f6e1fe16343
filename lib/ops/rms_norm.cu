/* z = x + residual;  y = z r weight,  r = 1 / sqrt(mean(z^2) + epsilon)
 * with u = dy weight:  dz = r (u - z r^2 mean(u z)) + dsum;  dx = dresidual = dz;  dweight += dy z r
 *
 * The second output is z, the residual stream, rounded to T; the norm takes the sum before it is rounded. Saved: r (rows). */
#include "ops/cuda_row_span.h"

enum { X, WEIGHT, RESIDUAL };
enum { Y, SUM };

/* Rows take turns with the weights of that many groups. */
static int64_t turns_of(const comba_shape *x, const comba_shape *weight) {
  return weight->rank ? weight->size[0] / x->size[x->rank - 1] : 1;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const int64_t d = x->size[x->rank - 1], rows = comba_shape_elements(x) / d;
  s->backward_workspace = row_parts(rows, turns_of(x, &s->input[WEIGHT]), d) * d;
  return COMBA_OK;
}

template <class L, class T> struct sum_span {
  row_span<L, T> x, residual;
  bool two;

  __device__ void load(const T *x_row, const T *residual_row, int64_t first, int64_t d) {
    x.load(x_row, first, d);
    two = residual_row;
    if (two) residual.load(residual_row, first, d);
  }
  __device__ float operator[](int i) const {
    return two ? x[i] + residual[i] : x[i];
  }
};

template <class L, class T>
static __global__ void norm(const T *x, const T *residual, const float *weight, int64_t turns, float epsilon,
                            int64_t rows, int64_t d, T *y, T *sum, float *rstd) {
  const int64_t row = own_row<L>(), at = row * d;
  if (row >= rows) return;
  sum_span<L, T> z;
  row_span<L, float> w; /* on its way during the sum */
  if (weight) {
    if (turns > 1) weight += row % turns * d;
    w.load(weight, 0, d);
  }
  float squares = 0;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    z.load(x + at, residual ? residual + at : NULL, first, d);
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++) squares += z[i] * z[i];
  }
  const float r = rsqrtf(row_sum<L>(squares, 0) / (float)d + epsilon);
  for (int64_t first = 0; first < d; first += L::SPAN) {
    if (weight && first) w.load(weight, first, d);
    if (d > L::SPAN) z.load(x + at, residual ? residual + at : NULL, first, d);
    put_span<L>(sum + at, first, d, false, [&](int i) { return z[i]; });
    put_span<L>(y + at, first, d, false, [&](int i) { return z[i] * r * (weight ? w[i] : 1); });
  }
  if (rstd && !threadIdx.x) rstd[row] = r;
}

/* What the thread adds to the sum of dy weight z of a row, but for the span from `here` on */
template <class L, class T>
static __device__ float products_elsewhere(const T *z, const float *weight, const T *dy, int64_t here, int64_t d) {
  float sum = 0;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    if (first == here) continue;
    row_span<L, T> value, gradient;
    row_span<L, float> w;
    value.load(z, first, d);
    gradient.load(dy, first, d);
    if (weight) w.load(weight, first, d);
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++) sum += gradient[i] * (weight ? w[i] : 1) * value[i];
  }
  return sum;
}

/* What a thread needs of a span of a row; gradients that are absent are zero */
template <class L, class T> struct gradient_span {
  row_span<L, T> z, dy, dsum;
  float r;

  __device__ void load(const T *z_rows, const T *dy_rows, const T *dsum_rows, const float *rstd, int64_t row,
                       int64_t first, int64_t d, bool there) {
    z.load(z_rows + row * d, first, there ? d : 0);
    dy.load(dy_rows + row * d, first, there && dy_rows ? d : 0);
    dsum.load(dsum_rows + row * d, first, there && dsum_rows ? d : 0);
    r = rstd[row];
  }
};

template <class L, class T>
static __global__ void __launch_bounds__(L::LANES *L::GROUPS, row_blocks_at_once<L, T>())
    norm_gradient(const T *z, const float *weight, int64_t turns, const float *rstd, const T *dy, const T *dsum,
                  int64_t rows, int64_t d, T *dx, bool add_x, T *dresidual, bool add_residual, float *partial) {
  int turn = 0;
  if (weight) weight += blockIdx.x % turns * d;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    float sum[L::N * L::PACKETS] = {};
    row_span<L, float> w;
    w.load(weight, first, weight ? d : 0);
    const float no_weight = weight ? 0 : 1;
    gradient_span<L, T> next;
    int64_t row = part_row<L>(turns);
    next.load(z, dy, dsum, rstd, min(row, rows - 1), first, d, row < rows);
    for (; row < rows; row += part_step<L>()) {
      const gradient_span<L, T> a = next;
      const int64_t at = row * d, later = row + part_step<L>();
      next.load(z, dy, dsum, rstd, min(later, rows - 1), first, d, later < rows);
      const auto u = [&](int i) { return a.dy[i] * (w[i] + no_weight); };
      float projection = 0;
#pragma unroll
      for (int i = 0; i < L::N * L::PACKETS; i++) {
        projection += u(i) * a.z[i];
        sum[i] += a.dy[i] * a.z[i] * a.r;
      }
      if (d > L::SPAN && dy) projection += products_elsewhere<L>(z + at, weight, dy + at, first, d);
      projection = row_sum<L>(projection, turn++) * a.r * a.r / (float)d;
#pragma unroll
      for (int k = 0; k < L::PACKETS; k++) {
        const int64_t j = row_span<L, T>::column(first, k);
        if (j >= d) continue;
        float dz[L::N];
#pragma unroll
        for (int n = 0; n < L::N; n++) {
          const int i = k * L::N + n;
          dz[n] = a.r * (u(i) - a.z[i] * projection) + a.dsum[i];
        }
        if (dx) put_packet<L::N>(dx + at + j, dz, add_x);
        if (dresidual) put_packet<L::N>(dresidual + at + j, dz, add_residual);
      }
    }
    if (partial) put_part<L>(partial + blockIdx.x * d, first, d, sum);
  }
}

template <class T> static void forward(const comba_call *call) {
  const comba_norm_attributes *attributes = (const comba_norm_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const int64_t turns = turns_of(shape, &call->input[WEIGHT].shape);
  const T *x = (const T *)call->input[X].data, *residual = (const T *)call->input[RESIDUAL].data;
  const float *weight = (const float *)call->input[WEIGHT].data;
  T *y = (T *)call->output[Y].data, *sum = (T *)call->output[SUM].data;
  float *rstd = (float *)call->saved[0].data;
  with_row_layout(d, cuda_rows_pack(d, x, residual, weight, y, sum), [&](auto layout) {
    typedef decltype(layout) L;
    norm<L><<<row_blocks<L>(rows), row_threads<L>(), 0, comba_cuda_stream()>>>(
        x, residual, weight, turns, (float)attributes->epsilon, rows, d, y, sum, rstd);
  });
  comba_cuda_note(cudaGetLastError(), "rms_norm");
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const int64_t turns = turns_of(shape, &call->input[WEIGHT].shape), parts = row_parts(rows, turns, d);
  const T *z = (const T *)call->output[SUM].data, *dy = (const T *)call->output_gradient[Y].data;
  const T *dsum = (const T *)call->output_gradient[SUM].data;
  const float *weight = (const float *)call->input[WEIGHT].data, *rstd = (const float *)call->saved[0].data;
  T *dx = (T *)call->input_gradient[X].data, *dresidual = (T *)call->input_gradient[RESIDUAL].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *partial = dweight ? (float *)call->workspace : NULL;
  with_row_layout(d, cuda_rows_pack(d, z, dy, dsum, weight, dx, dresidual, partial), [&](auto layout) {
    typedef decltype(layout) L;
    norm_gradient<L><<<(unsigned)parts, row_threads<L>(), 0, comba_cuda_stream()>>>(
        z, weight, turns, rstd, dy, dsum, rows, d, dx, call->accumulate[X], dresidual, call->accumulate[RESIDUAL],
        partial);
  });
  comba_cuda_note(cudaGetLastError(), "rms_norm, backward");
  if (dweight) comba_cuda_sum_rows(partial, parts / turns, turns * d, call->accumulate[WEIGHT], dweight);
}

COMBA_CUDA_ROW(rms_norm, infer);
