/* What CUDA kernels share. Kernels are queued on one stream; a launch that fails is noted, and the next read of the device's memory
 * reports it.
 *
 * T is the type of activations: float or bfloat16. Everything is computed in float; parameters, gates, states and the gradients of
 * parameters are float in memory. Sums run in an order that depends on the problem alone: no atomics. */
#ifndef COMBA_CORE_CUDA_KERNEL_H
#define COMBA_CORE_CUDA_KERNEL_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "core/cuda.h"
extern "C" {
#include "ops/ops.h"
}

typedef __nv_bfloat16 bfloat16;

cudaStream_t comba_cuda_stream();
/* While a pass is recorded in lanes, that of the stream; else -1. Kernels of two lanes may run at once. */
int comba_cuda_lane();
/* Keeps the first error, to be reported by the next read. */
void comba_cuda_note(cudaError_t error, const char *what);

template <class T> __device__ inline float load(const T *p) {
  return (float)*p;
}
template <class T> __device__ inline void store(T *p, float value) {
  *p = (T)value;
}
/* y = or += value */
template <class T> __device__ inline void put(T *p, float value, bool accumulate) {
  *p = (T)(accumulate ? (float)*p + value : value);
}

/* Two neighbouring activations in one access; `p` is aligned to both. */
template <class T> struct pair_of;
template <> struct pair_of<float> { typedef float2 type; };
template <> struct pair_of<bfloat16> { typedef __nv_bfloat162 type; };

/* 1 / (1 + e^-x) in four instructions: kernels that are bound by bytes have about ten an element to spare. */
__device__ inline float sigmoid(float x) {
  float power, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.4426950408889634f * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1 + power));
  return y;
}

/* The sum over a warp, in every lane. */
__device__ inline float warp_sum(float value) {
  for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
__device__ inline float warp_max(float value) {
  for (int offset = 16; offset; offset /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}
/* The sum over a block of whole warps, in every thread. */
__device__ inline float block_sum(float value) {
  __shared__ float part[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  __syncthreads();
  if (!lane) part[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? part[lane] : 0);
}
__device__ inline float block_max(float value) {
  __shared__ float part[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_max(value);
  __syncthreads();
  if (!lane) part[warp] = value;
  __syncthreads();
  return warp_max(lane < warps ? part[lane] : -INFINITY);
}

/* Copies into shared memory that go on while the thread works: a group is what was queued since the last, and a thread waits until
 * `pending` of its groups at most are under way. */
__device__ inline void close_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int pending> __device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* Runs f(i) for 0 <= i < n, a thread each. */
enum { COMBA_CUDA_BLOCK = 256 };
template <class F> __global__ void comba_each_kernel(int64_t n, F f) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) f(i);
}
template <class F> void comba_each(int64_t n, F f) {
  if (n <= 0) return;
  comba_each_kernel<<<(unsigned)((n + COMBA_CUDA_BLOCK - 1) / COMBA_CUDA_BLOCK), COMBA_CUDA_BLOCK, 0,
                      comba_cuda_stream()>>>(n, f);
  comba_cuda_note(cudaGetLastError(), "a launch");
}

void comba_cuda_zero(void *data, size_t bytes);

/* ---- Chains of small kernels ---------------------------------------------------------------------------------------- */

/* In a recording, a kernel that comba_chain launches may begin while the one before it runs: in place of waiting between two launches, its
 * blocks come to comba_chain_wait and wait there. Each of its threads has to come there, and touches before nothing but parameters, and
 * states that are updated in place: no other kernel of a recording that reads them writes them. */
__device__ inline void comba_chain_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* From here on the next kernel may begin, where there is room for its blocks. */
__device__ inline void comba_chain_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/* Whether launches are being recorded on a GPU that does so. */
bool comba_cuda_chains();
/* Whether the GPU has clusters of blocks. */
bool comba_cuda_clusters();
/* Bytes of shared memory that a block may have: 163 KB on sm_80, 227 KB on sm_90 and sm_100, and where there is no GPU. */
int64_t comba_cuda_shared_bytes();

/* `bytes` of dynamic shared memory. `cluster`: of so many neighbouring blocks, which may wait for one another; 1: none */
template <class... P, class... A>
void comba_cuda_launch_clusters(const char *what, void (*kernel)(P...), dim3 grid, int threads, size_t bytes,
                                unsigned cluster, const A &...arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = (unsigned)threads;
  config.dynamicSmemBytes = bytes;
  config.stream = comba_cuda_stream();
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;
  comba_cuda_note(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}

/* `bytes` of dynamic shared memory. `cluster`: of so many neighbouring blocks, which may wait for one another; 1: none */
template <class... P, class... A>
void comba_chain(const char *what, void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes, unsigned cluster,
                 A... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = bytes;
  config.stream = comba_cuda_stream();
  config.attrs = attributes;
  if (comba_cuda_chains()) {
    cudaLaunchAttribute *attribute = &attributes[config.numAttrs++];
    attribute->id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute->val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute *attribute = &attributes[config.numAttrs++];
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = cluster;
    attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
  }
  comba_cuda_note(cudaLaunchKernelEx(&config, kernel, P(arguments)...), what);
}

/* Without a gradient of output 0, those of the inputs are zero: writes them where they are wanted and returns true. Bit i of
 * `floats`: input i is float in memory whatever T is. */
template <class T> bool comba_cuda_gradient_absent(const comba_call *call, int inputs, uint32_t floats) {
  if (call->output_gradient[0].data) return false;
  for (int i = 0; i < inputs; i++) {
    const comba_view *gradient = &call->input_gradient[i];
    if (gradient->data && !call->accumulate[i])
      comba_cuda_zero(gradient->data,
                      (size_t)comba_shape_elements(&gradient->shape) * (floats >> i & 1 ? sizeof(float) : sizeof(T)));
  }
  return true;
}

/* sum (n) = or += the columns of partial (rows, n), in the order of the rows. */
void comba_cuda_sum_rows(const float *partial, int64_t rows, int64_t n, bool accumulate, float *sum);

/* sum (heads) = or += factor(h) times the sum over tokens of <x, y>, x and y (tokens, heads, k). `products`: tokens * heads floats.
 * A block a head adds up its products. */
template <class T>
static __global__ void comba_head_products_kernel(const T *x, const T *y, int64_t rows, int64_t k, float *products) {
  const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  float sum = 0;
  for (int64_t j = threadIdx.x; j < k; j += 32) sum += load(x + row * k + j) * load(y + row * k + j);
  sum = warp_sum(sum);
  if (!threadIdx.x) products[row] = sum;
}
template <class F>
static __global__ void comba_sum_heads_kernel(const float *products, int64_t tokens, int64_t heads, F factor,
                                              bool accumulate, float *sum) {
  float total = 0;
#pragma unroll 8
  for (int64_t t = threadIdx.x; t < tokens; t += blockDim.x) total += products[t * heads + blockIdx.x];
  total = block_sum(total);
  if (!threadIdx.x) put(sum + blockIdx.x, total * factor((int64_t)blockIdx.x), accumulate);
}
template <class F>
void comba_cuda_sum_products(const float *products, int64_t tokens, int64_t heads, F factor, bool accumulate,
                             float *sum) {
  comba_sum_heads_kernel<<<(unsigned)heads, 1024, 0, comba_cuda_stream()>>>(products, tokens, heads, factor, accumulate,
                                                                            sum);
  comba_cuda_note(cudaGetLastError(), "sums of heads");
}
template <class T, class F>
void comba_cuda_sum_heads(const T *x, const T *y, int64_t tokens, int64_t heads, int64_t k, float *products, F factor,
                          bool accumulate, float *sum) {
  comba_head_products_kernel<<<(unsigned)((tokens * heads + 7) / 8), dim3(32, 8), 0, comba_cuda_stream()>>>(
      x, y, tokens * heads, k, products);
  comba_cuda_sum_products(products, tokens, heads, factor, accumulate, sum);
}

/* C (m, n) = A B, or C += A B, row by row in memory: A is (m, k), or (k, m) where `transpose_a`; B likewise. A and B are T; C is T or
 * float. `batch` products, `stride_*` elements apart. `bias` (n, T) or NULL is added to each row. No typedef: the row of
 * the operator `product` has the same name, which hides that of a struct. */
struct comba_cuda_product {
  bool transpose_a, transpose_b, accumulate;
  int64_t m, n, k;
  int64_t lda, ldb, ldc;
  const void *a, *b, *bias;
  void *c;
  float scale;                                 /* 0 means 1 */
  int64_t batch, stride_a, stride_b, stride_c; /* batch 0 means 1 */
};
/* Once, before the first product: nothing can be allocated while a step is recorded. */
cudaError_t comba_cuda_open_products();
void comba_cuda_multiply(const comba_cuda_product *product, comba_cuda_type type, bool float_c);
template <class T> constexpr comba_cuda_type comba_cuda_type_of() {
  return sizeof(T) == sizeof(float) ? COMBA_CUDA_FLOAT32 : COMBA_CUDA_BFLOAT16;
}
/* A parameter as products read it: itself, or its copy in bfloat16, which follows it. */
template <class T> const T *comba_cuda_weight(const void *parameter);
/* The copy of n parameters in bfloat16, for the optimiser to write along; NULL where there is none. */
bfloat16 *comba_cuda_narrow_copy(const void *parameter);

/* A row from templates forward<T>, backward<T>; `...`: infer, backward_inputs, infer_narrow, optional_outputs; the last of them may
 * be left out. */
#define COMBA_CUDA_ROW(name, ...)                                                                                      \
  extern "C" const comba_cuda_op comba_cuda_##name = {                                                                 \
      {forward<float>, forward<bfloat16>}, {backward<float>, backward<bfloat16>}, __VA_ARGS__}
#define COMBA_CUDA_ROW_FORWARD(name, ...)                                                                              \
  extern "C" const comba_cuda_op comba_cuda_##name = {{forward<float>, forward<bfloat16>}, {NULL, NULL}, __VA_ARGS__}

#endif
