/* u[t] = bias + sum_j weight[j] x[t - (W-1) + j],  y = f(u), f silu or identity, for each channel; gradients as short_convolution.c
 * has them. Times before the first token of a sequence read the state.
 *
 * Up to MOST_TAPS taps, a thread walks down RUN rows of a few neighbouring channels with the taps and the last W-1 inputs in registers:
 * each x (and dy) is read once, but for the W-1 rows around a run. More taps are rare: there a thread has one row and channel. */
#include "core/cuda_packet.h"
#include "ops/cuda_sequences.h"

enum { X, WEIGHT, BIAS, STATE, CU_SEQLENS };
enum { Y, NEW_STATE };
enum {
  MOST_TAPS = 4,
  RUN = 32,          /* rows of a thread */
  RUNS = 4,          /* of a block, side by side; their sums for the gradients of taps and bias meet in shared memory */
  PART = RUN * RUNS, /* rows behind one partial sum */
  LANES = 32,        /* of a block, along the channels */
  CHANNELS = 4,      /* of a thread, where they come in fours */
};

static int64_t parts_of(int64_t rows) {
  return (rows + PART - 1) / PART;
}

static comba_status infer(comba_signature *s) {
  const int64_t rows = s->input[X].size[0] * s->input[X].size[1], channels = s->input[X].size[2];
  s->forward_workspace = 0;
  s->backward_workspace = parts_of(rows) * (s->input[WEIGHT].size[2] + 1) * channels;
  return COMBA_OK;
}

/* f(u), and du from u and dy */
template <bool SILU> static __device__ float value(float u) {
  return SILU ? u * sigmoid(u) : u;
}
template <bool SILU> static __device__ float gradient(float u, float dy) {
  const float s = SILU ? sigmoid(u) : 0;
  return SILU ? dy * (s + u * s * (1 - s)) : dy;
}

template <class T> struct problem {
  int64_t rows, channels, width; /* B T, C, W */
  cuda_sequences sequences;
  bool silu;
  const T *x;
  const float *weight, *bias, *state;
  const T *dy;       /* NULL in a forward pass, and where there is no such gradient */
  const float *dnew; /* of the new state, likewise */

  /* What sequence n, whose rows begin at `start`, has as its input `row`, row >= start - (W-1) */
  __device__ float source(int64_t n, int64_t start, int64_t row, int64_t c) const {
    if (row >= start) return load(x + row * channels + c);
    return state ? state[((n + 1) * (width - 1) + row - start) * channels + c] : 0;
  }
  __device__ float preactivation(int64_t n, int64_t start, int64_t row, int64_t c) const {
    float u = bias ? bias[c] : 0;
    for (int64_t j = 0; j < width; j++) u += weight[c * width + j] * source(n, start, row - (width - 1) + j, c);
    return u;
  }
  __device__ float gradient_at(int64_t n, int64_t start, int64_t row, int64_t c) const {
    if (!dy) return 0;
    const float u = preactivation(n, start, row, c), d = load(dy + row * channels + c);
    return silu ? gradient<true>(u, d) : gradient<false>(u, d);
  }
  /* What the new state passes back to input `row` of sequence n, if the row was kept there */
  __device__ float kept(int64_t n, int64_t stop, int64_t row, int64_t c) const {
    return dnew && row >= stop - (width - 1) ? dnew[((n + 1) * (width - 1) + row - stop) * channels + c] : 0;
  }
  /* The gradient of input `row` of sequence n, a row of its state where row < start: from the rows that read it */
  __device__ float input_gradient(int64_t n, int64_t row, int64_t c) const {
    const int64_t start = sequence_start(sequences, n), stop = sequence_start(sequences, n + 1);
    float sum = kept(n, stop, row, c);
    for (int64_t reader = max(row, start); reader < min(row + width, stop); reader++)
      sum += weight[c * width + width - 1 + row - reader] * gradient_at(n, start, reader, c);
    return sum;
  }
};

template <class T> static problem<T> problem_of(const comba_call *call) {
  const comba_shape *x = &call->input[X].shape;
  problem<T> p = {x->size[0] * x->size[1],
                  x->size[2],
                  call->input[WEIGHT].shape.size[2],
                  cuda_sequences_of(&call->input[X], &call->input[CU_SEQLENS]),
                  ((const comba_short_convolution_attributes *)call->attributes)->silu,
                  (const T *)call->input[X].data,
                  (const float *)call->input[WEIGHT].data,
                  (const float *)call->input[BIAS].data,
                  (const float *)call->input[STATE].data,
                  (const T *)call->output_gradient[Y].data,
                  (const float *)call->output_gradient[NEW_STATE].data};
  return p;
}

/* ---- Few taps: walks ------------------------------------------------------------------------------------------------- */

/* The taps of N channels from c on, and the inputs that the next row reads besides its own */
template <int W, int N> struct channels_of {
  float weight[W][N], bias[N], past[W][N]; /* past[0] to past[W-2], oldest first */

  template <class T> __device__ channels_of(const problem<T> &p, int64_t c) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      bias[i] = p.bias ? p.bias[c + i] : 0;
#pragma unroll
      for (int j = 0; j < W; j++) weight[j][i] = p.weight[(c + i) * W + j];
    }
  }
  template <class T> __device__ void begin(const problem<T> &p, int64_t n, int64_t start, int64_t row, int64_t c) {
#pragma unroll
    for (int j = 0; j < W - 1; j++)
#pragma unroll
      for (int i = 0; i < N; i++) past[j][i] = p.source(n, start, row - (W - 1) + j, c + i);
  }
  /* u of the row whose input is past[W-1] */
  __device__ float preactivation(int i) const {
    float u = bias[i];
#pragma unroll
    for (int j = 0; j < W; j++) u += weight[j][i] * past[j][i];
    return u;
  }
  __device__ void next() {
#pragma unroll
    for (int j = 0; j < W - 1; j++)
#pragma unroll
      for (int i = 0; i < N; i++) past[j][i] = past[j + 1][i];
  }
};

/* The thread's rows are [row, end); a walk passes through those of one sequence after another. */
template <class T, int W, bool SILU, int N> static __global__ void walk(problem<T> p, T *y) {
  enum { AHEAD = 8 }; /* rows that are read before the first is worked on */
  const int64_t c = ((int64_t)blockIdx.y * LANES + threadIdx.x) * N;
  const int64_t end = min(p.rows, (blockIdx.x * (int64_t)RUNS + threadIdx.y + 1) * RUN);
  int64_t row = (blockIdx.x * (int64_t)RUNS + threadIdx.y) * RUN;
  if (c >= p.channels || row >= end) return;
  channels_of<W, N> a(p, c);
  for (int64_t n = sequence_at(p.sequences, row); row < end; n++) {
    const int64_t start = sequence_start(p.sequences, n), stop = sequence_start(p.sequences, n + 1);
    const int64_t at = row * p.channels + c;
    const int rows = (int)(min(end, stop) - row);
    if (rows) a.begin(p, n, start, row, c);
    for (int now = 0; now < rows; now += AHEAD) {
      packet<T, N> x[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; k++) x[k] = load_packet<N>(p.x + at + min(now + k, rows - 1) * p.channels);
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        float result[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
          a.past[W - 1][i] = x[k][i];
          result[i] = value<SILU>(a.preactivation(i));
        }
        if (now + k < rows) put_packet<N>(y + at + (now + k) * p.channels, result, false);
        a.next();
      }
    }
    row += rows;
  }
}

/* dx, and partial (parts, C, W), behind it (parts, C), where they are wanted. A row's dx is due W-1 rows later, when all that read it
 * have passed; so a walk goes on W-1 rows past its last one. */
template <class T, int W, bool SILU, int N>
static __global__ void __launch_bounds__(LANES *RUNS, 4)
    walk_gradient(problem<T> p, T *dx, bool accumulate, float *partial) {
  enum { AHEAD = 4 };
  __shared__ float meet[RUNS][LANES * N * (W + 1)];
  const int64_t block_c = (int64_t)blockIdx.y * LANES * N, c = block_c + threadIdx.x * N;
  const int64_t end = min(p.rows, (blockIdx.x * (int64_t)RUNS + threadIdx.y + 1) * RUN);
  int64_t row = (blockIdx.x * (int64_t)RUNS + threadIdx.y) * RUN;
  float sum[W + 1][N] = {};
  if (c < p.channels && row < end) {
    channels_of<W, N> a(p, c);
    for (int64_t n = sequence_at(p.sequences, row); row < end; n++) {
      const int64_t start = sequence_start(p.sequences, n), stop = sequence_start(p.sequences, n + 1);
      const int64_t at = row * p.channels + c;
      const int rows = (int)(min(end, stop) - row), reach = rows ? rows + W - 1 : 0;
      const int read = (int)min((int64_t)reach, stop - row); /* behind them du is zero */
      float due[W][N] = {}; /* gradients of the rows now - (W-1) to now, as far as they are known */
      if (rows) a.begin(p, n, start, row, c);
      for (int now = 0; now < reach; now += AHEAD) {
        packet<T, N> x[AHEAD], dy[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
          const int64_t from = at + min(now + k, read - 1) * p.channels;
          x[k] = load_packet<N>(p.x + from);
          if (p.dy) dy[k] = load_packet<N>(p.dy + from);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
          const bool passes = now + k < read && p.dy, own = now + k < rows;
          const int ready = now + k - (W - 1);
#pragma unroll
          for (int i = 0; i < N; i++) {
            a.past[W - 1][i] = x[k][i];
            const float du = passes ? gradient<SILU>(a.preactivation(i), dy[k][i]) : 0, counted = own ? du : 0;
#pragma unroll
            for (int j = 0; j < W; j++) {
              due[j][i] += a.weight[j][i] * du;
              sum[j][i] += counted * a.past[j][i];
            }
            sum[W][i] += counted;
          }
          if (dx && ready >= 0 && ready < rows) {
            if (p.dnew && row + ready >= stop - (W - 1))
#pragma unroll
              for (int i = 0; i < N; i++) due[0][i] += p.kept(n, stop, row + ready, c + i);
            put_packet<N>(dx + at + ready * p.channels, due[0], accumulate);
          }
          a.next();
#pragma unroll
          for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < W - 1; j++) due[j][i] = due[j + 1][i];
            due[W - 1][i] = 0;
          }
        }
      }
      row += rows;
    }
  }
  if (!partial) return;
  float *own = meet[threadIdx.y] + threadIdx.x * N;
#pragma unroll
  for (int j = 0; j <= W; j++)
#pragma unroll
    for (int i = 0; i < N; i++) own[j * LANES * N + i] = sum[j][i];
  __syncthreads();
  const int64_t count = min((int64_t)LANES * N, p.channels - block_c), part = blockIdx.x;
  for (int64_t i = threadIdx.y * LANES + threadIdx.x; i < count * (W + 1); i += LANES * RUNS) {
    const int64_t j = i < count * W ? i % W : W, channel = i < count * W ? i / W : i - count * W;
    float total = 0;
    for (int run = 0; run < RUNS; run++) total += meet[run][j * LANES * N + channel];
    partial[j < W ? (part * p.channels + block_c) * W + i
                  : ((int64_t)gridDim.x * W + part) * p.channels + block_c + channel] = total;
  }
}

/* Calls f(kind<W, SILU>) for the problem's */
template <int W_, bool SILU_> struct kind {
  enum { W = W_, SILU = SILU_ };
};
template <class F> static void with_kind(int64_t width, bool silu, F f) {
  switch (2 * width + silu) {
  case 2: f(kind<1, false>()); break;
  case 3: f(kind<1, true>()); break;
  case 4: f(kind<2, false>()); break;
  case 5: f(kind<2, true>()); break;
  case 6: f(kind<3, false>()); break;
  case 7: f(kind<3, true>()); break;
  case 8: f(kind<MOST_TAPS, false>()); break;
  case 9: f(kind<MOST_TAPS, true>()); break;
  }
}

/* Whether threads can take CHANNELS channels; `y`: y or dx, what is written */
template <class T> static bool in_packets(const problem<T> &p, const void *y) {
  const size_t bytes = CHANNELS * sizeof(T);
  return p.channels % CHANNELS == 0 && comba_cuda_aligned(p.x, bytes) && comba_cuda_aligned(p.dy, bytes) &&
         comba_cuda_aligned(y, bytes);
}
template <class T> static dim3 grid_of(const problem<T> &p, int channels) {
  return dim3((unsigned)parts_of(p.rows), (unsigned)((p.channels + LANES * channels - 1) / (LANES * channels)));
}

template <class T> static void walk_forward(const problem<T> &p, T *y) {
  const dim3 block(LANES, RUNS);
  with_kind(p.width, p.silu, [&](auto k) {
    enum { W = decltype(k)::W, SILU = decltype(k)::SILU };
    if (in_packets(p, y))
      walk<T, W, SILU, CHANNELS><<<grid_of(p, CHANNELS), block, 0, comba_cuda_stream()>>>(p, y);
    else
      walk<T, W, SILU, 1><<<grid_of(p, 1), block, 0, comba_cuda_stream()>>>(p, y);
  });
  comba_cuda_note(cudaGetLastError(), "short_convolution");
}

template <class T> static void walk_backward(const problem<T> &p, T *dx, bool accumulate, float *partial) {
  const dim3 block(LANES, RUNS);
  with_kind(p.width, p.silu, [&](auto k) {
    enum { W = decltype(k)::W, SILU = decltype(k)::SILU };
    if (in_packets(p, dx))
      walk_gradient<T, W, SILU, CHANNELS>
          <<<grid_of(p, CHANNELS), block, 0, comba_cuda_stream()>>>(p, dx, accumulate, partial);
    else
      walk_gradient<T, W, SILU, 1><<<grid_of(p, 1), block, 0, comba_cuda_stream()>>>(p, dx, accumulate, partial);
  });
  comba_cuda_note(cudaGetLastError(), "short_convolution, backward");
}

/* ---- Any number of taps ---------------------------------------------------------------------------------------------- */

template <class T> static void any_forward(const problem<T> &p, T *y) {
  comba_each(p.rows * p.channels, [=] __device__(int64_t i) {
    const int64_t row = i / p.channels, n = sequence_at(p.sequences, row);
    const float u = p.preactivation(n, sequence_start(p.sequences, n), row, i % p.channels);
    store(y + i, p.silu ? value<true>(u) : value<false>(u));
  });
}

template <class T> static void any_backward(const problem<T> &p, T *dx, bool accumulate, float *partial) {
  if (dx)
    comba_each(p.rows * p.channels, [=] __device__(int64_t i) {
      const int64_t row = i / p.channels;
      put(dx + i, p.input_gradient(sequence_at(p.sequences, row), row, i % p.channels), accumulate);
    });
  const int64_t taps = p.channels * p.width, parts = parts_of(p.rows);
  if (partial)
    comba_each(parts * (taps + p.channels), [=] __device__(int64_t i) {
      const bool of_bias = i >= parts * taps;
      const int64_t entry = of_bias ? i - parts * taps : i, c = of_bias ? entry % p.channels : entry % taps / p.width;
      const int64_t part = of_bias ? entry / p.channels : entry / taps, back = p.width - 1 - entry % p.width;
      const int64_t end = min(p.rows, (part + 1) * PART);
      float sum = 0;
      for (int64_t row = part * PART; row < end; row++) {
        const int64_t n = sequence_at(p.sequences, row), start = sequence_start(p.sequences, n);
        sum += p.gradient_at(n, start, row, c) * (of_bias ? 1 : p.source(n, start, row - back, c));
      }
      partial[i] = sum;
    });
}

/* ---- The operator ---------------------------------------------------------------------------------------------------- */

template <class T> static void forward(const comba_call *call) {
  const problem<T> p = problem_of<T>(call);
  T *y = (T *)call->output[Y].data;
  float *new_state = (float *)call->output[NEW_STATE].data;
  if (p.width > MOST_TAPS)
    any_forward(p, y);
  else
    walk_forward(p, y);
  /* After all reads of the state, whose memory the new one may share: entries move towards the front, so ascending order reads each
   * before it is overwritten. */
  const int64_t carried = p.width - 1;
  comba_each(carried ? p.sequences.count * p.channels : 0, [=] __device__(int64_t i) {
    const int64_t c = i % p.channels, n = i / p.channels;
    const int64_t start = sequence_start(p.sequences, n), stop = sequence_start(p.sequences, n + 1);
    for (int64_t k = 0; k < carried; k++)
      new_state[(n * carried + k) * p.channels + c] = p.source(n, start, stop - carried + k, c);
  });
}

template <class T> static void backward(const comba_call *call) {
  const problem<T> p = problem_of<T>(call);
  const int64_t parts = parts_of(p.rows), carried = p.width - 1, taps = p.channels * p.width;
  T *dx = (T *)call->input_gradient[X].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *dbias = (float *)call->input_gradient[BIAS].data;
  float *dstate = (float *)call->input_gradient[STATE].data;
  float *partial = dweight || dbias ? (float *)call->workspace : NULL; /* (parts, C, W), (parts, C) */
  if (p.width > MOST_TAPS)
    any_backward(p, dx, call->accumulate[X], partial);
  else
    walk_backward(p, dx, call->accumulate[X], partial);
  if (dweight) comba_cuda_sum_rows(partial, parts, taps, call->accumulate[WEIGHT], dweight);
  if (dbias) comba_cuda_sum_rows(partial + parts * taps, parts, p.channels, call->accumulate[BIAS], dbias);
  if (!dstate) return;
  const bool accumulate = call->accumulate[STATE];
  comba_each(p.sequences.count * carried * p.channels, [=] __device__(int64_t i) {
    const int64_t c = i % p.channels, k = i / p.channels % carried, n = i / p.channels / carried;
    put(dstate + i, p.input_gradient(n, sequence_start(p.sequences, n) - carried + k, c), accumulate);
  });
}

COMBA_CUDA_ROW(short_convolution, infer);
