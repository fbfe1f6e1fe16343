/* Pairs of channels turned by an angle of their position, as rotary.c says; the gradient is turned back.
 *
 * A block has the heads of a few tokens, and finds the sines that they share. Angles are counted in turns, as fractions of 2^64: their
 * multiples drop whole turns and lose nothing, where float32 would lose 1e-3 at position 1e4. */
#include "core/cuda_packet.h"
#include "ops/cuda_sequences.h"

enum { X, POSITION, CU_SEQLENS };
enum {
  THREADS = 256, /* of a block: as many sines are found at a time, of one token or more */
  ROUND = 2,     /* packets of pairs that a thread has on their way */
};

struct problem {
  int64_t rows, length, period; /* B T, T; positions begin anew after `period`, if it is not 0 */
  int heads, half;              /* H, D/2 */
  double step;                  /* pair j turns by 2^(step j) a position */
  float direction;              /* 1, or -1 to turn back */
  const int32_t *position;      /* NULL, or that of the first token */
  cuda_sequences sequences;

  __device__ float2 cosine_and_sine(int64_t row, int j) const {
    const int64_t t = row % length;
    int64_t n = t - (sequences.cu_seqlens ? sequence_start(sequences, sequence_at(sequences, t)) : 0);
    if (position) n += *position;
    if (period) n %= period;
    const double turns = exp2(step * j) / (2 * 3.14159265358979323846);
    const uint64_t angle = (uint64_t)n * (uint64_t)((turns - floor(turns)) * 0x1p64);
    float sine, cosine;
    sincospif((float)(int32_t)(angle >> 32) * 0x1p-31f, &sine, &cosine);
    return make_float2(cosine, direction * sine);
  }
};

/* Pair j of a head is its channels `stride` j and `apart` further; a thread turns N neighbouring pairs at a time. */
template <int N, class T>
static __global__ void __launch_bounds__(THREADS)
    turn(problem p, int apart, int stride, const T *x, bool accumulate, T *y) {
  alignas(16) __shared__ float cosines[THREADS], sines[THREADS]; /* (tokens, pairs) */
  const int most = min(p.half, THREADS), tokens = THREADS / most;
  const int64_t row = (int64_t)blockIdx.x * tokens;
  const int here = (int)min((int64_t)tokens, p.rows - row);
  for (int first = 0; first < p.half; first += most) {
    const int pairs = min(most, p.half - first), packets = pairs / N, count = here * p.heads * packets;
    for (int begin = 0; begin < count; begin += ROUND * THREADS) {
      unread<T, N> a[ROUND], b[ROUND];
      int64_t at[ROUND];
      int angle[ROUND];
#pragma unroll
      for (int k = 0; k < ROUND; k++) {
        const int i = begin + k * THREADS + threadIdx.x, head = i / packets, j = (i - head * packets) * N;
        at[k] = (row * p.heads + head) * 2 * p.half + (first + j) * stride;
        angle[k] = head / p.heads * pairs + j;
        a[k].load(i < count, x + at[k]);
        b[k].load(i < count, x + at[k] + apart);
      }
      if (!begin) {
        const int token = threadIdx.x / pairs;
        __syncthreads();
        if (token < here) {
          const float2 both = p.cosine_and_sine(row + token, first + threadIdx.x % pairs);
          cosines[threadIdx.x] = both.x;
          sines[threadIdx.x] = both.y;
        }
        __syncthreads();
      }
#pragma unroll
      for (int k = 0; k < ROUND; k++) {
        if (begin + k * THREADS + threadIdx.x >= count) continue;
        const packet<float, N> cosine = load_packet<N>(cosines + angle[k]), sine = load_packet<N>(sines + angle[k]);
        float to_first[N], to_second[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
          const float one = a[k].read()[i], other = b[k].read()[i];
          to_first[i] = one * cosine[i] - other * sine[i];
          to_second[i] = other * cosine[i] + one * sine[i];
        }
        put_packet<N>(y + at[k], to_first, accumulate);
        put_packet<N>(y + at[k] + apart, to_second, accumulate);
      }
    }
  }
}

template <class T> static void rotate(const comba_call *call, const T *x, float direction, bool accumulate, T *y) {
  const comba_rotary_attributes *attributes = (const comba_rotary_attributes *)call->attributes;
  const int64_t *size = call->input[X].shape.size, half = size[3] / 2;
  const bool interleaved = attributes->interleaved;
  /* base^(-2 j / d) = 2^(step j) */
  const double step = -2 * log2(attributes->base == 0 ? 10000 : attributes->base) / (double)size[3];
  const problem p = {size[0] * size[1],
                     size[1],
                     attributes->period,
                     (int)size[2],
                     (int)half,
                     step,
                     direction,
                     (const int32_t *)call->input[POSITION].data,
                     cuda_sequences_of(&call->input[X], &call->input[CU_SEQLENS])};
  const int64_t tokens = THREADS / (half < THREADS ? half : THREADS);
  const unsigned blocks = (unsigned)((p.rows + tokens - 1) / tokens);
  const bool packs = half % 8 == 0 && !interleaved && comba_cuda_aligned(x, 16) && comba_cuda_aligned(y, 16);
  const auto kernel = packs ? turn<8, T> : turn<1, T>;
  kernel<<<blocks, THREADS, 0, comba_cuda_stream()>>>(p, interleaved ? 1 : (int)half, interleaved ? 2 : 1, x,
                                                      accumulate, y);
  comba_cuda_note(cudaGetLastError(), "rotary");
}

template <class T> static void forward(const comba_call *call) {
  rotate(call, (const T *)call->input[X].data, 1, false, (T *)call->output[0].data);
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  rotate(call, (const T *)call->output_gradient[0].data, -1, call->accumulate[X], (T *)call->input_gradient[X].data);
}

COMBA_CUDA_ROW(rotary);
