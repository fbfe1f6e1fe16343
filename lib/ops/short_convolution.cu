/* u[t] = bias + sum_j weight[j] x[t - (W-1) + j],  y = f(u), f silu or identity, for each channel, or f(u) with each head of some channels
 * divided by its length; gradients as short_convolution.c has them. Times before the first token of a sequence read the state.
 *
 * Up to MOST_TAPS taps, a thread walks down a run of rows of a few neighbouring channels with the taps and the last W-1 inputs in
 * registers: each x (and dy) is read once, but for the W-1 rows around a run. The rows ahead are on their way, forward to places in shared
 * memory that no other thread reads, backward to registers. More taps are rare: there a thread has one row and channel, as it does in
 * sequences of one token. */
#include "core/cuda_packet.h"
#include "ops/cuda_convolution_token.h"
#include "ops/cuda_l2_norm.h"
#include "ops/cuda_sequences.h"

enum { X, WEIGHT, BIAS, STATE, CU_SEQLENS };
enum { Y, NEW_STATE };
enum {
  MOST_TAPS = 4,
  RUNS = 4,   /* of a block, side by side; their sums for the gradients of taps and bias meet in shared memory */
  LANES = 32, /* of a block, along the channels */
  THREADS = LANES * RUNS,
  PACKET = 8,  /* bytes of the neighbouring channels of a thread */
  GROUP = 4,   /* rows that are fetched and worked on at a time */
  AHEAD = 12,  /* rows that are on their way, forward */
  ACROSS = 128 /* channels of a block, of bfloat16 */
};

/* Rows of a thread: so many that all blocks are under way at once, `blocks` on each of the 132 processors of an H100, but not fewer than
 * 64, for W-1 rows around them are read as well. */
enum { FORWARD_BLOCKS = 7, WIDE_BLOCKS = 4, BACKWARD_BLOCKS = 4, PROCESSORS = 132, LEAST_RUN = 64 };
static int64_t run_of(int64_t rows, int64_t channels, int blocks) {
  const int64_t across = (channels + ACROSS - 1) / ACROSS, down = blocks * PROCESSORS / across;
  const int64_t parts = RUNS * (down > 0 ? down : 1), run = ((rows + parts - 1) / parts + GROUP - 1) / GROUP * GROUP;
  return run > LEAST_RUN ? run : LEAST_RUN;
}

/* Rows behind one partial sum, and their number */
static int64_t part_rows(int64_t rows, int64_t channels) {
  return RUNS * run_of(rows, channels, BACKWARD_BLOCKS);
}
static int64_t parts_of(int64_t rows, int64_t channels) {
  const int64_t part = part_rows(rows, channels);
  return (rows + part - 1) / part;
}

/* What backward has in its workspace before the partial sums, in floats: dz (rows, C) of T, where heads were divided */
template <class T> static int64_t undivided_floats(int64_t head, const comba_shape *x) {
  return head ? (comba_shape_elements(x) * (int64_t)sizeof(T) + 15) / 16 * 4 : 0;
}

template <class T> static comba_status infer(comba_signature *s) {
  const int64_t rows = s->input[X].size[0] * s->input[X].size[1], channels = s->input[X].size[2];
  const int64_t head = ((const comba_short_convolution_attributes *)s->attributes)->head;
  s->forward_workspace = 0;
  s->backward_workspace =
      undivided_floats<T>(head, &s->input[X]) + parts_of(rows, channels) * (s->input[WEIGHT].size[2] + 1) * channels;
  return COMBA_OK;
}

/* f(u), and du from u and dy */
template <bool SILU> static __device__ float value(float u) {
  return SILU ? u * sigmoid(u) : u;
}
template <bool SILU> static __device__ float gradient(float u, float dy) {
  const float s = SILU ? sigmoid(u) : 0;
  return SILU ? dy * (s + s * (u - u * s)) : dy;
}

template <class T> struct problem {
  int64_t rows, channels, width; /* B T, C, W */
  cuda_sequences sequences;
  bool silu;
  const T *x;
  const float *weight, *bias, *state;
  const T *dy;       /* NULL in a forward pass, and where there is no such gradient */
  const float *dnew; /* of the new state, likewise */

  /* The input of sequence n that lies `row` rows from its start, -(W-1) <= row < 0 */
  __device__ float of_state(int64_t n, int64_t row, int64_t c) const {
    return state ? state[((n + 1) * (width - 1) + row) * channels + c] : 0;
  }
  /* What sequence n, whose rows begin at `start`, has as its input `row` */
  __device__ float source(int64_t n, int64_t start, int64_t row, int64_t c) const {
    return row >= start ? load(x + row * channels + c) : of_state(n, row - start, c);
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

/* Where a thread works: rows [row, end) of N channels from c on. Neighbouring blocks have the channels of the same rows, so that memory
 * is read row by row. */
template <int N> struct place {
  int part, block_c, c, row, end;

  __device__ place(int rows, int channels, int run) {
    const int across = (channels + LANES * N - 1) / (LANES * N);
    part = (int)blockIdx.x / across;
    block_c = (int)blockIdx.x % across * LANES * N;
    row = (part * RUNS + (int)threadIdx.y) * run;
    c = min(block_c + (int)threadIdx.x * N, channels - N);
    end = block_c + (int)threadIdx.x * N < channels ? min(rows, row + run) : row;
  }
  static unsigned blocks(int64_t rows, int64_t channels, int64_t run) {
    return (unsigned)((rows + run * RUNS - 1) / (run * RUNS) * ((channels + LANES * N - 1) / (LANES * N)));
  }
};

/* N channels of a run's rows on their way: a thread's own places in shared memory, a column of `places` */
template <class T, int N> struct row_queue {
  packet<T, N> *places;
  const T *next; /* the row that is asked for next */
  unsigned stride;

  __device__ row_queue(packet<T, N> (&places)[AHEAD][THREADS], const T *first, unsigned stride)
      : places(&places[0][threadIdx.y * LANES + threadIdx.x]), next(first), stride(stride) {
  }
  /* Asks for GROUP rows, of which `count` are there, in the places from `place` on, which have been read. */
  __device__ void fetch(int place, int count) {
#pragma unroll
    for (int k = 0; k < GROUP; k++) fetch_packet(places + (place + k) * THREADS, k < count, next + k * stride);
    next += GROUP * stride;
  }
  __device__ unread<T, N> operator[](int place) const {
    unread<T, N> values;
    values.load(true, places[place * THREADS].at);
    return values;
  }
};

/* The taps of N channels from c on, and the inputs that the next row reads besides its own */
template <class T, int W, int N, bool BIAS> struct channels_of {
  float weight[W][N], bias[N], past[W][N]; /* past[0] to past[W-2], oldest first */

  __device__ channels_of(const problem<T> &p, int c) {
    packet<float, N> taps[W]; /* those of a channel are neighbours */
#pragma unroll
    for (int j = 0; j < W; j++) taps[j] = load_packet<N>(p.weight + c * W + j * N);
#pragma unroll
    for (int i = 0; i < N; i++) {
      bias[i] = BIAS && p.bias ? p.bias[c + i] : 0;
#pragma unroll
      for (int j = 0; j < W; j++) weight[j][i] = taps[(i * W + j) / N][(i * W + j) % N];
    }
  }
  __device__ void begin(const problem<T> &p, int n, int start, int row, int c) {
    const int first = row - (W - 1);
    const int stride = (int)p.channels;
    unread<T, N> x[W];
#pragma unroll
    for (int j = 0; j < W - 1; j++) x[j].load(first + j >= start, p.x + (int64_t)(first + j) * stride + c);
#pragma unroll
    for (int j = 0; j < W - 1; j++)
#pragma unroll
      for (int i = 0; i < N; i++) past[j][i] = x[j].read()[i];
    if (first >= start || !p.state) return;
#pragma unroll
    for (int j = 0; j < W - 1; j++)
#pragma unroll
      for (int i = 0; i < N; i++)
        if (first + j < start) past[j][i] = p.of_state(n, first + j - start, c + i);
  }
  /* What sequence n leaves for the next call */
  __device__ void keep(const problem<T> &p, int n, int start, int stop, int c, float *new_state) const {
    float *to = new_state + (int64_t)n * (W - 1) * p.channels + c;
#pragma unroll
    for (int j = 0; j < W - 1; j++)
#pragma unroll
      for (int i = 0; i < N; i++) to[j * p.channels + i] = p.source(n, start, stop - (W - 1) + j, c + i);
  }
  /* u (N) of the row with the inputs x */
  __device__ void take(const unread<T, N> &x, float (&u)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      past[W - 1][i] = x.read()[i];
      u[i] = bias[i];
#pragma unroll
      for (int j = 0; j < W; j++) u[i] += weight[j][i] * past[j][i];
    }
  }
};
template <int W, int N> static __device__ void next_row(float (&values)[W][N]) {
#pragma unroll
  for (int j = 0; j < W - 1; j++)
#pragma unroll
    for (int i = 0; i < N; i++) values[j][i] = values[j + 1][i];
}

/* Wide packets take twice the registers. */
template <class T, int N> static constexpr int forward_blocks = N * sizeof(T) > PACKET ? WIDE_BLOCKS : FORWARD_BLOCKS;

/* HEADS: the channels of a warp are a head, which is divided by its length while it is in float; r (rows, C / head) or NULL. */
template <class T, int W, bool SILU, int N, bool HEADS>
static __global__ void __launch_bounds__(THREADS, forward_blocks<T, N>)
    walk(problem<T> p, int run, float epsilon, T *y, float *r, float *new_state) {
  __shared__ packet<T, N> places[AHEAD][THREADS];
  place<N> at((int)p.rows, (int)p.channels, run);
  if (at.row >= at.end) return;
  const unsigned stride = (unsigned)p.channels;
  channels_of<T, W, N, true> a(p, at.c);
  for (int n = (int)sequence_at(p.sequences, at.row); at.row < at.end; n++) {
    const int start = (int)sequence_start(p.sequences, n), stop = (int)sequence_start(p.sequences, n + 1);
    const int64_t here = at.row * p.channels + at.c;
    const int rows = min(at.end, stop) - at.row;
    row_queue<T, N> x(places, p.x + here, stride);
#pragma unroll
    for (int k = 0; k < AHEAD; k += GROUP) {
      x.fetch(k, rows - k);
      close_copies();
    }
    a.begin(p, n, start, at.row, at.c);
    T *result_row = y + here;
    for (int left = rows, place = 0; left > 0; left -= GROUP, result_row += GROUP * stride) {
      wait_for_copies<AHEAD / GROUP - 1>();
#pragma unroll
      for (int k = 0; k < GROUP; k++) {
        float u[N], result[N];
        a.take(x[place + k], u);
#pragma unroll
        for (int i = 0; i < N; i++) result[i] = value<SILU>(u[i]);
        if (HEADS) {
          float squares = 0;
#pragma unroll
          for (int i = 0; i < N; i++) squares += result[i] * result[i];
          const float factor = rsqrtf(warp_sum(squares) + epsilon);
#pragma unroll
          for (int i = 0; i < N; i++) result[i] *= factor;
          if (r && !threadIdx.x && k < left) r[(result_row - y + k * stride) / (LANES * N)] = factor;
        }
        if (k < left) put_packet<N>(result_row + k * stride, result, false);
        next_row(a.past);
      }
      x.fetch(place, left - AHEAD);
      close_copies();
      place = place < AHEAD - GROUP ? place + GROUP : 0;
    }
    wait_for_copies<0>(); /* zeros behind the run's end, whose places the next sequence takes */
    at.row += rows;
    if (new_state && at.row == stop) a.keep(p, n, start, stop, at.c, new_state);
  }
}

/* Inputs and gradients of ROWS rows of N channels */
template <class T, int ROWS, int N> struct rows_of {
  unread<T, N> x[ROWS], dy[ROWS];

  /* x and dy from row `now` on; zero from row `read` and `passes` on */
  __device__ void load(const T *from_x, const T *from_dy, unsigned stride, int now, int read, int passes) {
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
      x[k].load(now + k < read, from_x + (now + k) * stride);
      dy[k].load(now + k < passes, from_dy + (now + k) * stride);
    }
  }
};

/* A walk backward. An input's dx and what it adds to the gradients of the taps are due W-1 rows later, when du of all rows that read it
 * is known. */
template <class T, int W, bool SILU, int N, bool BIAS> struct gradients_of : channels_of<T, W, N, BIAS> {
  float du[W][N];               /* of the W rows up to the present one */
  float sum[W][N], bias_sum[N]; /* over the rows whose turn has come */

  using channels_of<T, W, N, BIAS>::past;
  using channels_of<T, W, N, BIAS>::weight;
  __device__ gradients_of(const problem<T> &p, int c) : channels_of<T, W, N, BIAS>(p, c) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      bias_sum[i] = 0;
#pragma unroll
      for (int j = 0; j < W; j++) sum[j][i] = 0;
    }
  }
  __device__ void take_gradient(const unread<T, N> &x, const unread<T, N> &dy) {
    float u[N];
    this->take(x, u);
#pragma unroll
    for (int i = 0; i < N; i++) du[W - 1][i] = gradient<SILU>(u[i], dy.read()[i]);
  }
  __device__ void count() {
#pragma unroll
    for (int i = 0; i < N; i++) {
#pragma unroll
      for (int j = 0; j < W; j++) sum[j][i] += past[0][i] * du[W - 1 - j][i];
      if (BIAS) bias_sum[i] += du[0][i];
    }
  }
  __device__ void pass(T *dx, bool accumulate) const {
    float result[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      result[i] = weight[0][i] * du[W - 1][i];
#pragma unroll
      for (int j = 1; j < W; j++) result[i] += weight[j][i] * du[W - 1 - j][i];
    }
    put_packet<N>(dx, result, accumulate);
  }
  __device__ void next() {
    next_row(past);
    next_row(du);
  }
};

/* dx but for what the new state passes back, and partial (parts, C, W), behind it (parts, C), where they are wanted */
template <class T, int W, bool SILU, int N, bool BIAS>
static __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
    walk_gradient(problem<T> p, int run, T *dx, bool accumulate, float *partial) {
  __shared__ float meet[RUNS][LANES * N * (W + 1)];
  place<N> at((int)p.rows, (int)p.channels, run);
  const unsigned stride = (unsigned)p.channels;
  gradients_of<T, W, SILU, N, BIAS> a(p, at.c);
  for (int n = at.row < at.end ? (int)sequence_at(p.sequences, at.row) : 0; at.row < at.end; n++) {
    const int start = (int)sequence_start(p.sequences, n), stop = (int)sequence_start(p.sequences, n + 1);
    const int64_t here = at.row * p.channels + at.c;
    const int rows = min(at.end, stop) - at.row;
    const int read = min(rows + W - 1, stop - at.row), passes = p.dy ? read : 0; /* du is zero behind */
    const T *x = p.x + here, *dy = p.dy + here;
    if (!rows) continue;
    rows_of<T, W, N> before; /* the W-1 rows before anything is due; no more is read of them */
    rows_of<T, GROUP, N> ahead;
    before.load(x, dy, stride, 0, min(read, W - 1), min(passes, W - 1));
    ahead.load(x, dy, stride, W - 1, read, passes);
    a.begin(p, n, start, at.row, at.c);
#pragma unroll
    for (int j = 0; j < W; j++)
#pragma unroll
      for (int i = 0; i < N; i++) a.du[j][i] = 0;
#pragma unroll
    for (int k = 0; k < W - 1; k++) {
      a.take_gradient(before.x[k], before.dy[k]);
      if (p.state && at.row == start) a.count(); /* the rows of the state */
      a.next();
    }
    int due = 0;
    for (; dx && !accumulate && due + GROUP <= rows; due += GROUP) {
      const rows_of<T, GROUP, N> own = ahead;
      ahead.load(x, dy, stride, due + GROUP + W - 1, read, passes);
#pragma unroll
      for (int k = 0; k < GROUP; k++) {
        a.take_gradient(own.x[k], own.dy[k]);
        a.count();
        a.pass(dx + here + (unsigned)(due + k) * stride, false);
        a.next();
      }
    }
#pragma unroll 1
    for (; due < rows; due++) {
      rows_of<T, 1, N> own;
      own.load(x, dy, stride, due + W - 1, read, passes);
      a.take_gradient(own.x[0], own.dy[0]);
      a.count();
      if (dx) a.pass(dx + here + due * stride, accumulate);
      a.next();
    }
    at.row += rows;
  }
  if (!partial) return;
  float *own = meet[threadIdx.y] + threadIdx.x * N;
#pragma unroll
  for (int i = 0; i < N; i++) {
    own[W * LANES * N + i] = a.bias_sum[i];
#pragma unroll
    for (int j = 0; j < W; j++) own[j * LANES * N + i] = a.sum[j][i];
  }
  __syncthreads();
  const int64_t count = min((int64_t)LANES * N, p.channels - at.block_c),
                parts = (p.rows + run * RUNS - 1) / (run * RUNS), part = at.part;
  for (int64_t i = threadIdx.y * LANES + threadIdx.x; i < count * (W + 1); i += LANES * RUNS) {
    const int64_t j = i < count * W ? i % W : W, channel = i < count * W ? i / W : i - count * W;
    float total = 0;
    for (int group = 0; group < RUNS; group++) total += meet[group][j * LANES * N + channel];
    partial[j < W ? (part * p.channels + at.block_c) * W + i : (parts * W + part) * p.channels + at.block_c + channel] =
        total;
  }
}

template <int W_, bool SILU_, int N_> struct kind {
  enum { W = W_, SILU = SILU_, N = N_ };
};
template <class F> static void with_taps(int64_t width, bool silu, F f) {
  switch (2 * width + silu) {
  case 2: f(kind<1, false, 1>()); break;
  case 3: f(kind<1, true, 1>()); break;
  case 4: f(kind<2, false, 1>()); break;
  case 5: f(kind<2, true, 1>()); break;
  case 6: f(kind<3, false, 1>()); break;
  case 7: f(kind<3, true, 1>()); break;
  case 8: f(kind<MOST_TAPS, false, 1>()); break;
  case 9: f(kind<MOST_TAPS, true, 1>()); break;
  }
}
/* Offsets inside a run are of 32 bits. */
template <class T> static bool can_walk(const problem<T> &p) {
  return p.width <= MOST_TAPS && p.channels < 1 << 24 && p.rows < INT32_MAX / 2;
}
/* Calls f(kind<W, SILU, N>) where threads can take N channels; `y`: y or dx, what is written */
template <class T, class F> static void with_walk(const problem<T> &p, const void *y, F f) {
  enum { N = PACKET / sizeof(T) };
  const bool packs = p.channels % N == 0 && comba_cuda_aligned(p.x, PACKET) && comba_cuda_aligned(p.dy, PACKET) &&
                     comba_cuda_aligned(y, PACKET) && comba_cuda_aligned(p.weight, N * sizeof(float));
  with_taps(p.width, p.silu, [&](auto k) {
    enum { W = decltype(k)::W, SILU = decltype(k)::SILU };
    if (packs)
      f(kind<W, SILU, N>());
    else
      f(kind<W, SILU, 1>());
  });
}

template <class T, int W, bool SILU, int N, bool HEADS>
static void launch_walk(const problem<T> &p, int64_t run, float epsilon, T *y, float *r, float *new_state) {
  const unsigned blocks = place<N>::blocks(p.rows, p.channels, run);
  walk<T, W, SILU, N, HEADS>
      <<<blocks, dim3(LANES, RUNS), 0, comba_cuda_stream()>>>(p, (int)run, epsilon, y, r, new_state);
  comba_cuda_note(cudaGetLastError(), "short_convolution");
}

template <class T> static void walk_forward(const problem<T> &p, T *y, float *new_state) {
  const int64_t run = run_of(p.rows, p.channels, FORWARD_BLOCKS);
  with_walk(p, y, [&](auto k) {
    typedef decltype(k) K;
    launch_walk<T, K::W, K::SILU, K::N, false>(p, run, 0, y, NULL, new_state);
  });
}

/* N: a warp's channels are a head */
template <class T, int N>
static bool launch_heads(const problem<T> &p, float epsilon, T *y, float *r, float *new_state) {
  const int64_t run = run_of(p.rows, p.channels * ACROSS / (LANES * N), forward_blocks<T, N>);
  launch_walk<T, MOST_TAPS, true, N, true>(p, run, epsilon, y, r, new_state);
  return true;
}
/* Whether heads were divided on the way: four taps, silu, heads that fit a warp. Then the quotient alone is rounded to bfloat16. */
template <class T>
static bool walk_heads(const problem<T> &p, int64_t head, float epsilon, T *y, float *r, float *new_state) {
  if constexpr (sizeof(T) < sizeof(float)) {
    const size_t bytes = head / LANES * sizeof(T);
    if (!p.silu || p.width != MOST_TAPS || !head || head % LANES || !comba_cuda_aligned(p.x, bytes) ||
        !comba_cuda_aligned(y, bytes) || !comba_cuda_aligned(p.weight, 16))
      return false;
    switch (head / LANES) {
    case 1: return launch_heads<T, 1>(p, epsilon, y, r, new_state);
    case 2: return launch_heads<T, 2>(p, epsilon, y, r, new_state);
    case 4: return launch_heads<T, 4>(p, epsilon, y, r, new_state);
    case 8: return launch_heads<T, 8>(p, epsilon, y, r, new_state);
    }
  }
  return false;
}

template <class T> static void walk_backward(const problem<T> &p, T *dx, bool accumulate, float *partial) {
  const int64_t run = run_of(p.rows, p.channels, BACKWARD_BLOCKS);
  with_walk(p, dx, [&](auto k) {
    typedef decltype(k) K;
    /* what language models have, without the bias and its sums */
    constexpr bool bare = (int)K::W == (int)MOST_TAPS && K::SILU;
    const auto kernel =
        bare && !p.bias ? walk_gradient<T, K::W, K::SILU, K::N, !bare> : walk_gradient<T, K::W, K::SILU, K::N, true>;
    kernel<<<place<K::N>::blocks(p.rows, p.channels, run), dim3(LANES, RUNS), 0, comba_cuda_stream()>>>(
        p, (int)run, dx, accumulate, partial);
  });
  /* What the new state passes back to the last rows of each sequence */
  const int64_t carried = p.width - 1;
  comba_each(dx && p.dnew ? p.sequences.count * carried * p.channels : 0, [=] __device__(int64_t i) {
    const int64_t c = i % p.channels, n = i / p.channels / carried, back = carried - i / p.channels % carried;
    const int64_t row = sequence_start(p.sequences, n + 1) - back;
    if (row >= sequence_start(p.sequences, n)) put(dx + row * p.channels + c, p.dnew[i], true);
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
  const int64_t taps = p.channels * p.width, part_size = part_rows(p.rows, p.channels);
  const int64_t parts = parts_of(p.rows, p.channels);
  if (partial)
    comba_each(parts * (taps + p.channels), [=] __device__(int64_t i) {
      const bool of_bias = i >= parts * taps;
      const int64_t entry = of_bias ? i - parts * taps : i, c = of_bias ? entry % p.channels : entry % taps / p.width;
      const int64_t part = of_bias ? entry / p.channels : entry / taps, back = p.width - 1 - entry % p.width;
      const int64_t end = min(p.rows, (part + 1) * part_size);
      float sum = 0;
      for (int64_t row = part * part_size; row < end; row++) {
        const int64_t n = sequence_at(p.sequences, row), start = sequence_start(p.sequences, n);
        sum += p.gradient_at(n, start, row, c) * (of_bias ? 1 : p.source(n, start, row - back, c));
      }
      partial[i] = sum;
    });
}

/* ---- One token of each sequence -------------------------------------------------------------------------------------- */

template <class T> static bool is_token(const problem<T> &p) {
  return p.sequences.length == 1 && !p.sequences.cu_seqlens && p.width <= CONVOLUTION_TOKEN_TAPS;
}
template <class T> static void token_forward(const problem<T> &p, T *y, float *new_state) {
  const convolution_token<T> token = {p.channels, (int)p.width, p.silu, p.x, p.weight, p.bias, p.state, y, new_state};
  comba_each(p.rows * p.channels, [=] __device__(int64_t i) { token.pass(i / token.channels, i % token.channels); });
}

/* ---- The operator ---------------------------------------------------------------------------------------------------- */

template <class T> static void forward(const comba_call *call) {
  const comba_short_convolution_attributes *attributes = (const comba_short_convolution_attributes *)call->attributes;
  const problem<T> p = problem_of<T>(call);
  const int64_t head = attributes->head;
  T *y = (T *)call->output[Y].data;
  float *new_state = (float *)call->output[NEW_STATE].data, *r = (float *)call->saved[0].data;
  const bool token = is_token(p), walks = !token && can_walk(p);
  /* A walk leaves the new state as well where no other walk can still read the old one, and no sequence is empty. */
  const bool keeps = walks && !p.state && !p.sequences.cu_seqlens;
  float *kept = keeps ? new_state : NULL;
  const bool divided = walks && walk_heads(p, head, (float)attributes->epsilon, y, r, kept);
  if (token)
    token_forward(p, y, new_state);
  else if (walks && !divided)
    walk_forward(p, y, kept);
  else if (!divided)
    any_forward(p, y);
  if (head && !divided) cuda_divide_rows((const T *)y, attributes->epsilon, p.rows * p.channels / head, head, y, r);
  if (token || keeps) return;
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
  problem<T> p = problem_of<T>(call);
  const int64_t parts = parts_of(p.rows, p.channels), carried = p.width - 1, taps = p.channels * p.width;
  const int64_t head = ((const comba_short_convolution_attributes *)call->attributes)->head;
  if (head && p.dy) {
    T *dz = (T *)call->workspace;
    cuda_divide_rows_gradient((const T *)call->output[Y].data, (const float *)call->saved[0].data, p.dy,
                              p.rows * p.channels / head, head, dz, false);
    p.dy = dz;
  }
  T *dx = (T *)call->input_gradient[X].data;
  float *dweight = (float *)call->input_gradient[WEIGHT].data, *dbias = (float *)call->input_gradient[BIAS].data;
  float *dstate = (float *)call->input_gradient[STATE].data;
  float *partial = dweight || dbias ? (float *)call->workspace + undivided_floats<T>(head, &call->input[X].shape)
                                    : NULL; /* (parts, C, W), (parts, C) */
  if (can_walk(p))
    walk_backward(p, dx, call->accumulate[X], partial);
  else
    any_backward(p, dx, call->accumulate[X], partial);
  if (dweight) comba_cuda_sum_rows(partial, parts, taps, call->accumulate[WEIGHT], dweight);
  if (dbias) comba_cuda_sum_rows(partial + parts * taps, parts, p.channels, call->accumulate[BIAS], dbias);
  if (!dstate) return;
  const bool accumulate = call->accumulate[STATE];
  comba_each(p.sequences.count * carried * p.channels, [=] __device__(int64_t i) {
    const int64_t c = i % p.channels, k = i / p.channels % carried, n = i / p.channels / carried;
    put(dstate + i, p.input_gradient(n, sequence_start(p.sequences, n) - carried + k, c), accumulate);
  });
}

COMBA_CUDA_ROW(short_convolution, infer<float>, 0, infer<bfloat16>);
