/* y = n weight f(gate),  n = x r,  r = 1 / sqrt(mean(x^2) + epsilon), f sigmoid or silu
 * with u = dy weight f(gate):  dx = r (u - n mean(u n));  dgate = dy n weight f'(gate);  dweight += dy n f(gate)
 *
 * Rows take turns with the weights of several groups. Saved: r (rows). */
#include "ops/cuda_row_span.h"

enum { X, GATE, WEIGHT };

static int64_t turns_of(const comba_shape *x, const comba_shape *weight) {
  return weight->size[0] / x->size[x->rank - 1];
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const int64_t d = x->size[x->rank - 1], rows = comba_shape_elements(x) / d;
  s->backward_workspace = row_parts(rows, turns_of(x, &s->input[WEIGHT]), d) * d;
  return COMBA_OK;
}

/* f(z), and its derivative from z and f(z) */
static __device__ float gate_value(float z, bool silu) {
  const float s = sigmoid(z);
  return silu ? z * s : s;
}
static __device__ float gate_slope(float z, float value, bool silu) {
  const float s = sigmoid(z);
  return (silu ? s : 0) + value * (1 - s);
}

template <class L, class T>
static __global__ void norm(const T *x, const T *gate, const float *weight, int64_t turns, bool silu, float epsilon,
                            int64_t rows, int64_t d, T *y, float *rstd) {
  const int64_t row = own_row<L>(), at = row * d;
  if (row >= rows) return;
  row_span<L, T> a, z;
  row_span<L, float> w; /* on its way during the sum */
  if (turns > 1) weight += row % turns * d;
  w.load(weight, 0, d);
  float squares = 0;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    a.load(x + at, first, d);
    if (d <= L::SPAN) z.load(gate + at, first, d);
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++) squares += a[i] * a[i];
  }
  const float r = rsqrtf(row_sum<L>(squares, 0) / (float)d + epsilon);
  for (int64_t first = 0; first < d; first += L::SPAN) {
    if (first) w.load(weight, first, d);
    if (d > L::SPAN) {
      a.load(x + at, first, d);
      z.load(gate + at, first, d);
    }
    put_span<L>(y + at, first, d, false, [&](int i) { return a[i] * r * w[i] * gate_value(z[i], silu); });
  }
  if (rstd && !threadIdx.x) rstd[row] = r;
}

/* What a thread needs of a span of a row */
template <class L, class T> struct gradient_span {
  row_span<L, T> x, gate, dy;
  float r;

  __device__ void load(const T *x_rows, const T *gate_rows, const T *dy_rows, const float *rstd, int64_t row,
                       int64_t first, int64_t d, bool there) {
    x.load(x_rows + row * d, first, there ? d : 0);
    gate.load(gate_rows + row * d, first, there ? d : 0);
    dy.load(dy_rows + row * d, first, there ? d : 0);
    r = rstd[row];
  }
  /* its part of the sum of u x */
  __device__ float products(const row_span<L, float> &weight, bool silu) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++) sum += dy[i] * weight[i] * gate_value(gate[i], silu) * x[i];
    return sum;
  }
};

template <class L, class T>
static __global__ void __launch_bounds__(L::LANES *L::GROUPS, row_blocks_at_once<L, T>())
    norm_gradient(const T *x, const T *gate, const float *weight, int64_t turns, bool silu, const float *rstd,
                  const T *dy, int64_t rows, int64_t d, T *dx, bool add_x, T *dgate, bool add_gate, float *partial) {
  int turn = 0;
  weight += blockIdx.x % turns * d;
  for (int64_t first = 0; first < d; first += L::SPAN) {
    float sum[L::N * L::PACKETS] = {};
    row_span<L, float> w;
    w.load(weight, first, d);
    gradient_span<L, T> next;
    int64_t row = part_row<L>(turns);
    next.load(x, gate, dy, rstd, min(row, rows - 1), first, d, row < rows);
    for (; row < rows; row += part_step<L>()) {
      const gradient_span<L, T> a = next;
      const int64_t at = row * d, later = row + part_step<L>();
      next.load(x, gate, dy, rstd, min(later, rows - 1), first, d, later < rows);
      float projection = a.products(w, silu);
      for (int64_t other = 0; other < d && d > L::SPAN; other += L::SPAN) {
        gradient_span<L, T> b;
        row_span<L, float> weights;
        if (other == first) continue;
        b.load(x, gate, dy, rstd, row, other, d, true);
        weights.load(weight, other, d);
        projection += b.products(weights, silu);
      }
      projection = row_sum<L>(projection, turn++) * a.r * a.r / (float)d;
#pragma unroll
      for (int k = 0; k < L::PACKETS; k++) {
        const int64_t j = row_span<L, T>::column(first, k);
        float to_x[L::N], to_gate[L::N];
#pragma unroll
        for (int n = 0; n < L::N; n++) {
          const int i = k * L::N + n;
          const float value = gate_value(a.gate[i], silu), along = a.dy[i] * a.x[i] * a.r;
          sum[i] += along * value;
          to_gate[n] = along * w[i] * gate_slope(a.gate[i], value, silu);
          to_x[n] = a.r * (a.dy[i] * w[i] * value - a.x[i] * projection);
        }
        if (j >= d) continue;
        if (dgate) put_packet<L::N>(dgate + at + j, to_gate, add_gate);
        if (dx) put_packet<L::N>(dx + at + j, to_x, add_x);
      }
    }
    if (partial) put_part<L>(partial + blockIdx.x * d, first, d, sum);
  }
}

template <class T> static void forward(const comba_call *call) {
  const comba_gated_rms_norm_attributes *attributes = (const comba_gated_rms_norm_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const T *x = (const T *)call->input[X].data, *gate = (const T *)call->input[GATE].data;
  const float *weight = (const float *)call->input[WEIGHT].data;
  T *y = (T *)call->output[0].data;
  with_row_layout(d, cuda_rows_pack(d, x, gate, weight, y), [&](auto layout) {
    typedef decltype(layout) L;
    norm<L><<<row_blocks<L>(rows), row_threads<L>(), 0, comba_cuda_stream()>>>(
        x, gate, weight, turns_of(shape, &call->input[WEIGHT].shape), attributes->gate == COMBA_SILU,
        (float)attributes->epsilon, rows, d, y, (float *)call->saved[0].data);
  });
  comba_cuda_note(cudaGetLastError(), "gated_rms_norm");
}

template <class T> static void backward(const comba_call *call) {
  const comba_gated_rms_norm_attributes *attributes = (const comba_gated_rms_norm_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const int64_t turns = turns_of(shape, &call->input[WEIGHT].shape), parts = row_parts(rows, turns, d);
  const T *x = (const T *)call->input[X].data, *gate = (const T *)call->input[GATE].data;
  const T *dy = (const T *)call->output_gradient[0].data;
  const float *weight = (const float *)call->input[WEIGHT].data, *rstd = (const float *)call->saved[0].data;
  T *dx = (T *)call->input_gradient[X].data, *dgate = (T *)call->input_gradient[GATE].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *partial = dweight ? (float *)call->workspace : NULL;
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << WEIGHT)) return;
  with_row_layout(d, cuda_rows_pack(d, x, gate, dy, weight, dx, dgate, partial), [&](auto layout) {
    typedef decltype(layout) L;
    norm_gradient<L><<<(unsigned)parts, row_threads<L>(), 0, comba_cuda_stream()>>>(
        x, gate, weight, turns, attributes->gate == COMBA_SILU, rstd, dy, rows, d, dx, call->accumulate[X], dgate,
        call->accumulate[GATE], partial);
  });
  comba_cuda_note(cudaGetLastError(), "gated_rms_norm, backward");
  if (dweight) comba_cuda_sum_rows(partial, parts / turns, turns * d, call->accumulate[WEIGHT], dweight);
}

COMBA_CUDA_ROW(gated_rms_norm, infer);
