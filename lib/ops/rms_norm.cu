/* z = x + residual;  y = z r weight,  r = 1 / sqrt(mean(z^2) + epsilon)
 * with u = dy weight:  dz = r (u - z r^2 mean(u z)) + dsum;  dx = dresidual = dz;  dweight += dy z r
 *
 * The second output is z, the residual stream, rounded to T; the norm takes the sum before it is rounded. Saved: r (rows). */
#include "core/cuda_kernel.h"

enum { X, WEIGHT, RESIDUAL };
enum { Y, SUM };
enum { THREADS = 128, BLOCKS = 264 }; /* backward: two blocks a multiprocessor, each with a partial dweight */

/* Rows take turns with the weights of `groups` groups; a block's rows all have the same. */
static int64_t groups_of(const comba_shape *x, const comba_shape *weight) {
  return weight->rank ? weight->size[0] / x->size[x->rank - 1] : 1;
}

/* Blocks of a backward pass: a multiple of the groups. */
static int64_t blocks_of(int64_t rows, int64_t groups) {
  const int64_t turns = BLOCKS / groups > 0 ? BLOCKS / groups : 1;
  return groups * (turns < rows / groups ? turns : rows / groups);
}

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X];
  const int64_t d = x->size[x->rank - 1], rows = comba_shape_elements(x) / d;
  s->backward_workspace = blocks_of(rows, groups_of(x, &s->input[WEIGHT])) * d;
  return COMBA_OK;
}

template <class T>
static __global__ void norm(const T *x, const T *residual, const float *weight, int64_t groups, float epsilon,
                            int64_t d, T *y, T *sum, float *rstd) {
  const int64_t at = (int64_t)blockIdx.x * d;
  if (weight) weight += blockIdx.x % groups * d;
  float squares = 0;
  for (int64_t j = threadIdx.x; j < d; j += THREADS) {
    const float z = load(x + at + j) + (residual ? load(residual + at + j) : 0);
    squares += z * z;
  }
  const float r = rsqrtf(block_sum(squares) / (float)d + epsilon);
  for (int64_t j = threadIdx.x; j < d; j += THREADS) {
    const float z = load(x + at + j) + (residual ? load(residual + at + j) : 0);
    store(sum + at + j, z);
    store(y + at + j, z * r * (weight ? weight[j] : 1));
  }
  if (rstd && !threadIdx.x) rstd[blockIdx.x] = r;
}

template <class T>
static __global__ void norm_gradient(const T *z, const float *weight, int64_t groups, const float *rstd, const T *dy,
                                     const T *dsum, int64_t rows, int64_t d, T *dx, bool add_x, T *dresidual,
                                     bool add_residual, float *partial) {
  if (weight) weight += blockIdx.x % groups * d;
  if (partial)
    for (int64_t j = threadIdx.x; j < d; j += THREADS) partial[blockIdx.x * d + j] = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t at = row * d;
    const float r = rstd[row];
    float projection = 0;
    for (int64_t j = threadIdx.x; j < d && dy; j += THREADS)
      projection += load(dy + at + j) * (weight ? weight[j] : 1) * load(z + at + j);
    projection = block_sum(projection) * r * r / (float)d;
    for (int64_t j = threadIdx.x; j < d; j += THREADS) {
      const float value = load(z + at + j), gradient = dy ? load(dy + at + j) : 0;
      const float dz =
          r * (gradient * (weight ? weight[j] : 1) - value * projection) + (dsum ? load(dsum + at + j) : 0);
      if (partial) partial[blockIdx.x * d + j] += gradient * value * r;
      if (dx) put(dx + at + j, dz, add_x);
      if (dresidual) put(dresidual + at + j, dz, add_residual);
    }
  }
}

template <class T> static void forward(const comba_call *call) {
  const comba_norm_attributes *attributes = (const comba_norm_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const int64_t groups = groups_of(shape, &call->input[WEIGHT].shape);
  norm<<<(unsigned)rows, THREADS, 0, comba_cuda_stream()>>>(
      (const T *)call->input[X].data, (const T *)call->input[RESIDUAL].data, (const float *)call->input[WEIGHT].data,
      groups, (float)attributes->epsilon, d, (T *)call->output[Y].data, (T *)call->output[SUM].data,
      (float *)call->saved[0].data);
  comba_cuda_note(cudaGetLastError(), "rms_norm");
}

template <class T> static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[X].shape;
  const int64_t d = shape->size[shape->rank - 1], rows = comba_shape_elements(shape) / d;
  const int64_t groups = groups_of(shape, &call->input[WEIGHT].shape), blocks = blocks_of(rows, groups);
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *partial = dweight ? (float *)call->workspace : NULL;
  norm_gradient<<<(unsigned)blocks, THREADS, 0, comba_cuda_stream()>>>(
      (const T *)call->output[SUM].data, (const float *)call->input[WEIGHT].data, groups,
      (const float *)call->saved[0].data, (const T *)call->output_gradient[Y].data,
      (const T *)call->output_gradient[SUM].data, rows, d, (T *)call->input_gradient[X].data, call->accumulate[X],
      (T *)call->input_gradient[RESIDUAL].data, call->accumulate[RESIDUAL], partial);
  comba_cuda_note(cudaGetLastError(), "rms_norm, backward");
  if (dweight) comba_cuda_sum_rows(partial, blocks / groups, groups * d, call->accumulate[WEIGHT], dweight);
}

COMBA_CUDA_ROW(rms_norm, infer);
