/* y[b] = x[b] / (1 - rate) where draw_b >= rate, else 0;  dx[b] = dy[b] / (1 - rate) there: the same draws, made again. A block has a
 * piece of one sample. */
#include "core/cuda_packet.h"
#include "core/random.h"

enum { X };
enum { THREADS = 256, PACKET = 8, PIECE = PACKET * THREADS };

template <int N, class T>
static __global__ void mask_kernel(const comba_run *run, uint64_t stream, double rate, const T *x, int64_t pieces,
                                   int64_t size, bool accumulate, T *y) {
  const int64_t b = blockIdx.x / pieces, first = blockIdx.x % pieces * PIECE, end = min(size, first + PIECE);
  const bool kept = comba_random_uniform(run->seed, stream + (run->step << 32), (uint64_t)b) >= rate;
  const float scale = (float)(1 / (1 - rate));
  for (int64_t i = b * size + first + threadIdx.x * N; i < b * size + end; i += THREADS * N) {
    const packet<T, N> from = load_packet<N>(x + i);
    float value[N];
#pragma unroll
    for (int n = 0; n < N; n++) value[n] = kept ? scale * from[n] : 0;
    put_packet<N>(y + i, value, accumulate);
  }
}

template <class T> static void mask(const comba_call *call, const T *x, bool accumulate, T *y) {
  const comba_dropout_attributes *a = (const comba_dropout_attributes *)call->attributes;
  const comba_shape *shape = &call->input[X].shape;
  const int64_t batch = shape->size[0], size = comba_shape_elements(shape) / batch;
  const int64_t pieces = (size + PIECE - 1) / PIECE;
  const bool packs = size % PACKET == 0 && comba_cuda_aligned(x, 16) && comba_cuda_aligned(y, 16);
  const auto kernel = packs ? mask_kernel<PACKET, T> : mask_kernel<1, T>;
  kernel<<<(unsigned)(batch * pieces), THREADS, 0, comba_cuda_stream()>>>(call->run, a->stream, a->rate, x, pieces,
                                                                          size, accumulate, y);
  comba_cuda_note(cudaGetLastError(), "drop_path");
}

template <class T> static void forward(const comba_call *call) {
  mask(call, (const T *)call->input[X].data, false, (T *)call->output[0].data);
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  mask(call, (const T *)call->output_gradient[0].data, call->accumulate[X], (T *)call->input_gradient[X].data);
}

COMBA_CUDA_ROW(drop_path);
