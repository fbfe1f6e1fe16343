/* y = n weight f(gate),  n = x r,  r = 1 / sqrt(mean(x^2) + epsilon), f sigmoid or silu
 * with u = dy weight f(gate):  dx = r (u - n mean(u n));  dgate = dy n weight f'(gate);  dweight += dy n f(gate)
 *
 * A warp a row; rows take turns with the weights of g groups. Saved: r (rows). */
#include "core/cuda_kernel.h"

enum { X, GATE, WEIGHT };
enum { WARPS = 8, PARTS = 1024 }; /* backward: warps that each add up a partial dweight */

static int64_t groups_of(const comba_shape *x, const comba_shape *weight) {
  return weight->size[0] / x->size[x->rank - 1];
}

/* Warps of a backward pass: a multiple of the groups, so that a warp's rows share a weight. */
static int64_t parts_of(int64_t rows, int64_t groups) {
  const int64_t turns = PARTS / groups > 0 ? PARTS / groups : 1;
  return groups * (turns < rows / groups ? turns : rows / groups);
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const int64_t d = x->size[x->rank - 1], rows = comba_shape_elements(x) / d;
  s->backward_workspace = parts_of(rows, groups_of(x, &s->input[WEIGHT])) * d;
  return COMBA_OK;
}

/* f(z) and its derivative */
static __device__ float gate_value(float z, bool silu, float *derivative) {
  const float s = sigmoid(z), value = silu ? z * s : s;
  *derivative = (silu ? s : 0) + value * (1 - s);
  return value;
}

template <class T>
static __global__ void norm(const T *x, const T *gate, const float *weight, int64_t groups, bool silu, float epsilon,
                            int64_t rows, int64_t d, T *y, float *rstd) {
  const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.y, at = row * d;
  if (row >= rows) return;
  weight += row % groups * d;
  float squares = 0, derivative;
  for (int64_t j = threadIdx.x; j < d; j += 32) squares += load(x + at + j) * load(x + at + j);
  const float r = rsqrtf(warp_sum(squares) / (float)d + epsilon);
  for (int64_t j = threadIdx.x; j < d; j += 32)
    store(y + at + j, load(x + at + j) * r * weight[j] * gate_value(load(gate + at + j), silu, &derivative));
  if (rstd && !threadIdx.x) rstd[row] = r;
}

template <class T>
static __global__ void norm_gradient(const T *x, const T *gate, const float *weight, int64_t groups, bool silu,
                                     const float *rstd, const T *dy, int64_t rows, int64_t d, int64_t parts, T *dx,
                                     bool add_x, T *dgate, bool add_gate, float *partial) {
  const int64_t part = (int64_t)blockIdx.x * WARPS + threadIdx.y;
  if (part >= parts) return;
  weight += part % groups * d;
  partial += part * d;
  for (int64_t j = threadIdx.x; j < d; j += 32) partial[j] = 0;
  for (int64_t row = part; row < rows; row += parts) {
    const int64_t at = row * d;
    const float r = rstd[row];
    float projection = 0, derivative;
    for (int64_t j = threadIdx.x; j < d; j += 32)
      projection +=
          load(dy + at + j) * weight[j] * gate_value(load(gate + at + j), silu, &derivative) * load(x + at + j);
    projection = warp_sum(projection) * r * r / (float)d;
    for (int64_t j = threadIdx.x; j < d; j += 32) {
      const float value = gate_value(load(gate + at + j), silu, &derivative), n = load(x + at + j) * r;
      const float along = load(dy + at + j) * n, u = load(dy + at + j) * weight[j] * value;
      partial[j] += along * value;
      if (dgate) put(dgate + at + j, along * weight[j] * derivative, add_gate);
      if (dx) put(dx + at + j, r * u - load(x + at + j) * r * projection, add_x);
    }
  }
}

template <class T> static void forward(const comba_call *call) {
  const comba_gated_rms_norm_attributes *attributes = (const comba_gated_rms_norm_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  norm<<<(unsigned)((rows + WARPS - 1) / WARPS), dim3(32, WARPS), 0, comba_cuda_stream()>>>(
      (const T *)call->input[X].data, (const T *)call->input[GATE].data, (const float *)call->input[WEIGHT].data,
      groups_of(shape, &call->input[WEIGHT].shape), attributes->gate == COMBA_SILU, (float)attributes->epsilon, rows, d,
      (T *)call->output[0].data, (float *)call->saved[0].data);
  comba_cuda_note(cudaGetLastError(), "gated_rms_norm");
}

template <class T> static void backward(const comba_call *call) {
  const comba_gated_rms_norm_attributes *attributes = (const comba_gated_rms_norm_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const int64_t groups = groups_of(shape, &call->input[WEIGHT].shape), parts = parts_of(rows, groups);
  float *partial = (float *)call->workspace, *dweight = (float *)call->input_gradient[WEIGHT].data;
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << WEIGHT)) return;
  norm_gradient<<<(unsigned)((parts + WARPS - 1) / WARPS), dim3(32, WARPS), 0, comba_cuda_stream()>>>(
      (const T *)call->input[X].data, (const T *)call->input[GATE].data, (const float *)call->input[WEIGHT].data,
      groups, attributes->gate == COMBA_SILU, (const float *)call->saved[0].data,
      (const T *)call->output_gradient[0].data, rows, d, parts, (T *)call->input_gradient[X].data, call->accumulate[X],
      (T *)call->input_gradient[GATE].data, call->accumulate[GATE], partial);
  comba_cuda_note(cudaGetLastError(), "gated_rms_norm, backward");
  if (dweight) comba_cuda_sum_rows(partial, parts / groups, groups * d, call->accumulate[WEIGHT], dweight);
}

COMBA_CUDA_ROW(gated_rms_norm, infer);
