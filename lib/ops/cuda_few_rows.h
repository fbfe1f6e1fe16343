/* Products x weight^T in which x has few rows, as in decoding, by several weights that share x: a stage of cuda_together.cu. They are bound
 * by the bytes of the weights, each of which is read once, 16 bytes a thread and access; sums are in float. The first of them are on
 * their way before x is there.
 *
 * Up to FEW_ROWS rows a warp has a column or two of y, and its lanes share the sum. Up to SOME_ROWS, in bfloat16, tensor cores have 16
 * columns at a time, and the warps of a block share the sum. */
#ifndef COMBA_OPS_CUDA_FEW_ROWS_H
#define COMBA_OPS_CUDA_FEW_ROWS_H

#include "core/cuda_grid_wait.h"
#include "core/cuda_packet.h"
#include "ops/cuda_token_step.h"
#include "scan/cuda_tile.h"

enum { FEW_ROWS = 4, SOME_ROWS = 64, FEW_WEIGHTS = 8 };

/* y (rows, n) = x weight^T + bias; rows of x (rows, k) and of the weight (n, k) begin at multiples of 16 bytes */
template <class T> struct few_rows_weight {
  const T *weight, *bias;
  T *y;
  int n, task; /* the first that has columns of it */
};

/* `tasks`, so many columns of one weight or of two, are dealt to blocks, and then to their warps. `paired`: a task has the same columns of
 * the first two weights, and writes silu(a) b of their results to `swiglu` too. */
template <class T> struct few_rows_product {
  int rows, k, weights, tasks;
  bool paired, normed;
  const T *x;
  T *swiglu;
  token_step norm;                    /* `normed`: makes x, in every block; `x` is where one writes it for others */
  few_rows_weight<T> of[FEW_WEIGHTS]; /* `weights` of them */
};

/* Rows of weights: of a task those of `columns` neighbouring columns, or of half as many of two weights */
template <class T> struct few_rows_task {
  const few_rows_weight<T> *own, *other; /* of the first half of the task's rows, and of the second */
  int column, column_of_other;           /* the first of each; past the last one where there is no such task */

  __device__ few_rows_task(const few_rows_product<T> &p, int task, int columns) {
    int i = 0;
    while (i + 1 < p.weights && task >= p.of[i + 1].task && !p.paired) i++;
    own = &p.of[i];
    other = p.paired ? &p.of[1] : own;
    column = (task - own->task) * (p.paired ? columns / 2 : columns);
    column_of_other = p.paired ? column : column + columns / 2;
    if (task >= p.tasks) column = column_of_other = 1 << 30;
  }
};

template <class T>
static __device__ inline void put_column(const few_rows_weight<T> &w, int row, int column, float sum) {
  if (column < w.n) store(w.y + (int64_t)row * w.n + column, sum + (w.bias ? load(w.bias + column) : 0));
}
/* What swiglu makes of two results as they were stored */
template <class T>
static __device__ inline void put_swiglu(const few_rows_product<T> &p, int row, int column, float gate, float up) {
  const T a = (T)gate, b = (T)up;
  if (column < p.of->n) store(p.swiglu + (int64_t)row * p.of->n + column, load(&a) * sigmoid(load(&a)) * load(&b));
}

/* 16 bytes, zero where there are none */
static __device__ inline uint4 load_bits(const void *from, bool there) {
  return there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
}
template <class T> static __device__ inline packet<T, 16 / sizeof(T)> packet_of(const uint4 &bits) {
  packet<T, 16 / sizeof(T)> values;
  memcpy(&values, &bits, sizeof bits);
  return values;
}

/* ---- Up to four rows ------------------------------------------------------------------------------------------------- */

enum { FEW_COLUMNS = 2, FEW_AHEAD = 16 }; /* of a warp; accesses of a lane that are under way, to all of its columns */
/* Bytes of shared memory: for what is under way, and x behind it */
constexpr int few_rows_ring = FEW_AHEAD * STAGE_WORKERS * 16;
enum { FEW_X = 64 << 10, SHARED_ELSE = 14 << 10 }; /* x at most; what kernels have besides */

/* x to shared memory (M, k) */
template <class T, int M> static __device__ inline void take_x(const few_rows_product<T> &p, uint4 *shared) {
  constexpr int pack = 16 / sizeof(T);
  const int count = p.rows * p.k / pack;
  if (p.normed) {
    token_step norm = p.norm;
    norm.out[0] = shared;
    const bool writes = blockIdx.x + 1 == gridDim.x; /* the block with the fewest tasks */
    if (!writes) norm.out[1] = NULL;
    run_by_rows<T>(norm, {0, p.rows * norm.rows});
    wait_for_workers();
    if (writes)
      for (int i = threadIdx.x; i < count; i += STAGE_WORKERS) ((uint4 *)p.x)[i] = shared[i];
    return;
  }
  for (int i = threadIdx.x; i < count; i += STAGE_WORKERS) shared[i] = ((const uint4 *)p.x)[i];
  wait_for_workers();
}

/* What a lane reads of the weights, in its order: 16 bytes of each of COLUMNS rows at a time, of one task after another. */
template <class T, int COLUMNS> struct few_rows_reader {
  static constexpr int pack = 16 / sizeof(T), step = 32 * pack;
  const few_rows_product<T> &p;
  int task, begin; /* the warp's first channel of those that come next */
  const T *row[COLUMNS];

  __device__ few_rows_reader(const few_rows_product<T> &product, int first) : p(product), task(first), begin(0) {
    find_rows();
  }
  __device__ void find_rows() {
    const few_rows_task<T> of(p, task, COLUMNS);
    row[0] = of.column < of.own->n ? of.own->weight + (int64_t)of.column * p.k : NULL;
    if (COLUMNS == 2)
      row[COLUMNS - 1] = of.column_of_other < of.other->n ? of.other->weight + (int64_t)of.column_of_other * p.k : NULL;
  }
  /* zeros where there are none */
  __device__ void copy(uint4 *to) {
    const int c = begin + threadIdx.x % 32 * pack;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
      const bool there = row[j] && c < p.k;
      copy_async(to + j * STAGE_WORKERS, there ? row[j] + c : p.of->weight, there);
    }
    close_copies();
    begin += step;
    if (begin < p.k) return;
    begin = 0;
    task += STAGE_WARPS * gridDim.x;
    find_rows();
  }
};

/* COLUMNS of a warp at a time. `ring`: FEW_AHEAD places for 16 bytes of each worker, who copies there what it reads itself */
template <class T, int M, int COLUMNS>
static __device__ inline void multiply_columns(const few_rows_product<T> &p, uint4 *x_room, uint4 *ring) {
  constexpr int pack = 16 / sizeof(T), ahead = FEW_AHEAD / COLUMNS;
  const int lane = threadIdx.x % 32;
  int task = (int)(threadIdx.x / 32 * gridDim.x + blockIdx.x), turn = 0;
  few_rows_reader<T, COLUMNS> reader(p, task);
  const auto place = [&](int i) { return ring + i % ahead * COLUMNS * STAGE_WORKERS + threadIdx.x; };
  wait_for_workers(); /* who may still read there what the stage before has in shared memory */
  for (int i = 0; i < ahead; i++) reader.copy(place(i));
  begin_stage();
  take_x<T, M>(p, x_room);
  for (; task < p.tasks; task += STAGE_WARPS * gridDim.x) {
    float sum[M][COLUMNS] = {};
    for (int c = lane * pack; c - lane * pack < p.k; c += 32 * pack, turn++) {
      uint4 *const w = place(turn);
      wait_for_copies<ahead - 1>();
#pragma unroll
      for (int m = 0; m < M; m++) {
        const packet<T, pack> x = packet_of<T>(load_bits(x_room + (min(m, p.rows - 1) * p.k + c) / pack, c < p.k));
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
          const packet<T, pack> values = packet_of<T>(w[j * STAGE_WORKERS]);
#pragma unroll
          for (int e = 0; e < pack; e++) sum[m][j] += x[e] * values[e];
        }
      }
      reader.copy(w);
    }
    const few_rows_task<T> of(p, task, COLUMNS);
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) sum[m][j] = warp_sum(sum[m][j]);
      if (lane || m >= p.rows) continue;
      put_column(*of.own, m, of.column, sum[m][0]);
      if (COLUMNS == 2) put_column(*of.other, m, of.column_of_other, sum[m][COLUMNS - 1]);
      if (COLUMNS == 2 && p.paired) put_swiglu(p, m, of.column, sum[m][0], sum[m][COLUMNS - 1]);
    }
  }
  wait_for_copies<0>();
}

/* Columns of a task: one where that gives warps without work one, too */
template <class T> static __host__ __device__ int few_rows_columns(const few_rows_product<T> &p, int blocks) {
  int columns = 0;
  for (int i = 0; i < p.weights; i++) columns += p.of[i].n;
  return !p.paired && columns <= blocks * STAGE_WARPS ? 1 : FEW_COLUMNS;
}

template <class T, int M> static __device__ inline void multiply_few(const few_rows_product<T> &p, uint4 *shared) {
  uint4 *const x = shared + few_rows_ring / 16;
  if (few_rows_columns(p, gridDim.x) == 1)
    multiply_columns<T, M, 1>(p, x, shared);
  else
    multiply_columns<T, M, FEW_COLUMNS>(p, x, shared);
}

/* ---- Up to 64 rows --------------------------------------------------------------------------------------------------- */

enum {
  /* channels of a warp at a time, 8 of a lane: two products of 16, whose order of channels is the same for both factors */
  SOME_STEP = 32,
  SOME_PIECE = SOME_STEP * STAGE_WARPS, /* of all warps */
  SOME_COLUMNS = 16,                    /* of y that a product has */
  SOME_AHEAD = 2, /* pieces that are under way: of the weight in registers, of x in shared memory */
  SOME_STRIDE = (SOME_PIECE + 32) * 2, /* bytes between rows of a piece: lanes of two rows use different banks */
  SOME_UNITS = SOME_PIECE / 8,         /* of 16 bytes, in a row of a piece */
};
template <int TILES> constexpr int some_rows_piece = TILES * 8 * SOME_STRIDE;
/* Pieces of x, and the warps' sums */
template <int TILES>
constexpr int some_rows_bytes = SOME_AHEAD *some_rows_piece<TILES> + STAGE_WARPS *TILES * 8 * (SOME_COLUMNS + 1) * 4;

/* TILES: of 8 rows of x. A block has a task, of SOME_COLUMNS columns, whose sum over k its warps share. y^T = weight x^T, so a row of the
 * weight is one of the product. */
template <int TILES> static __device__ inline void multiply_some(const few_rows_product<bfloat16> &p, uint4 *shared) {
  char *const pieces = (char *)shared;
  float(*part)[TILES * 8][SOME_COLUMNS + 1] =
      (float(*)[TILES * 8][SOME_COLUMNS + 1])(pieces + SOME_AHEAD * some_rows_piece<TILES>); /* a warp's */
  const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4;
  const int channel = warp * SOME_STEP + threadIdx.x % 4 * 8; /* of a piece */
  const int rounds = (p.k + SOME_AHEAD * SOME_PIECE - 1) / (SOME_AHEAD * SOME_PIECE);
  uint4 w[SOME_AHEAD][2];
  const auto fetch = [&](const few_rows_task<bfloat16> &of, int i, int c) {
    const int column = of.column + row, other = of.column_of_other + row;
    w[i][0] = load_bits(of.own->weight + (int64_t)column * p.k + c, c < p.k && column < of.own->n);
    w[i][1] = load_bits(of.other->weight + (int64_t)other * p.k + c, c < p.k && other < of.other->n);
  };
  /* the piece that begins at channel c; zeros where x has nothing */
  const auto copy_x = [&](int i, int c) {
    const int unit = threadIdx.x % SOME_UNITS, at = c + unit * 8;
#pragma unroll
    for (int n = 0; n < TILES; n++) {
      const int m = n * (STAGE_WORKERS / SOME_UNITS) + threadIdx.x / SOME_UNITS;
      const bool there = m < p.rows && at < p.k;
      copy_async(pieces + i * some_rows_piece<TILES> + m * SOME_STRIDE + unit * 16,
                 p.x + (there ? (int64_t)m * p.k + at : 0), there);
    }
    close_copies();
  };
  int task = blockIdx.x;
  few_rows_task<bfloat16> of(p, task, SOME_COLUMNS);
#pragma unroll
  for (int i = 0; i < SOME_AHEAD; i++) fetch(of, i, channel + i * SOME_PIECE);
  begin_stage();
  if (task >= p.tasks) return;
#pragma unroll
  for (int i = 0; i < SOME_AHEAD; i++) copy_x(i, i * SOME_PIECE);
  for (bool first = true; task < p.tasks; task += gridDim.x, first = false) {
    const few_rows_task<bfloat16> next(p, task + (int)gridDim.x, SOME_COLUMNS);
    const bool comes = rounds > 1 || first; /* x: in one round it stays where it is */
    float sum[TILES][4] = {};
    for (int round = 0; round < rounds; round++)
#pragma unroll
      for (int i = 0; i < SOME_AHEAD; i++) {
        const int after = (round + 1) * SOME_AHEAD + i; /* the piece that takes the place of this one */
        if (comes) {
          wait_for_copies<SOME_AHEAD - 1>();
          wait_for_workers();
        }
        const uint4 near = w[i][0], far = w[i][1];
        const uint32_t low[4] = {near.x, far.x, near.y, far.y}, high[4] = {near.z, far.z, near.w, far.w};
        const char *from = pieces + i * some_rows_piece<TILES> + row * SOME_STRIDE + channel * 2;
#pragma unroll
        for (int n = 0; n < TILES; n++) {
          const uint4 x = *(const uint4 *)(from + n * 8 * SOME_STRIDE);
          multiply_add(sum[n], low, x.x, x.y);
          multiply_add(sum[n], high, x.z, x.w);
        }
        const bool last = round + 1 == rounds;
        fetch(last ? next : of, i, channel + (last ? i : after) * SOME_PIECE);
        if (rounds == 1) {
          close_copies(); /* the number of groups is what waiting counts */
        } else {
          wait_for_workers();
          copy_x(i, (last ? i : after) * SOME_PIECE);
        }
      }
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) part[warp][n * 8 + threadIdx.x % 4 * 2 + i % 2][row + i / 2 * 8] = sum[n][i];
    wait_for_workers();
    for (int i = threadIdx.x; i < TILES * 8 * SOME_COLUMNS / 2; i += STAGE_WORKERS) {
      const int m = i / (SOME_COLUMNS / 2), j = i % (SOME_COLUMNS / 2);
      float near = 0, far = 0;
#pragma unroll
      for (int k = 0; k < STAGE_WARPS; k++) {
        near += part[k][m][j];
        far += part[k][m][j + SOME_COLUMNS / 2];
      }
      if (m >= p.rows) continue;
      put_column(*of.own, m, of.column + j, near);
      put_column(*of.other, m, of.column_of_other + j, far);
      if (p.paired) put_swiglu(p, m, of.column + j, near, far);
    }
    wait_for_workers();
    of = next;
  }
  wait_for_copies<0>();
}

/* ---- On the host ----------------------------------------------------------------------------------------------------- */

/* Bytes of shared memory for up to FEW_ROWS rows of x; 0 where a GPU has too little */
static int64_t few_rows_room() {
  const int64_t left = comba_cuda_shared_bytes() - SHARED_ELSE - few_rows_ring;
  return left < 0 ? 0 : left < FEW_X ? left : FEW_X;
}

template <class T> static bool few_rows_fit(int64_t rows, int64_t n, int64_t k) {
  const bool some = sizeof(T) == sizeof(bfloat16) && rows <= SOME_ROWS &&
                    n <= 1 << 13 /* wider ones fill cuBLASLt's tiles */ &&
                    comba_cuda_shared_bytes() >= (rows <= 32 ? some_rows_bytes<4> : some_rows_bytes<8>)+SHARED_ELSE;
  const bool few = rows <= FEW_ROWS && rows * k * (int64_t)sizeof(T) <= few_rows_room();
  return (few || (some && rows > FEW_ROWS)) && k % (16 / (int)sizeof(T)) == 0 && n < 1 << 30 && k <= 1 << 20;
}

/* Whether a linear operator is such a product, which is then of one weight. */
template <class T> static bool few_rows_describe(const comba_call *call, few_rows_product<T> *p) {
  enum { X, WEIGHT, BIAS };
  const int64_t n = call->input[WEIGHT].shape.size[0], k = call->input[WEIGHT].shape.size[1];
  const int64_t rows = comba_shape_elements(&call->input[X].shape) / k;
  const T *weight = comba_cuda_weight<T>(call->input[WEIGHT].data), *x = (const T *)call->input[X].data;
  if (!few_rows_fit<T>(rows, n, k) || !comba_cuda_aligned(x, 16) || !comba_cuda_aligned(weight, 16)) return false;
  p->rows = (int)rows;
  p->k = (int)k;
  p->weights = 1;
  p->x = x;
  p->of[0].weight = weight;
  p->of[0].bias = call->input[BIAS].data ? comba_cuda_weight<T>(call->input[BIAS].data) : NULL;
  p->of[0].y = (T *)call->output[0].data;
  p->of[0].n = (int)n;
  return true;
}

/* Gives each weight its tasks. */
template <class T> static void few_rows_deal(few_rows_product<T> *p, int blocks) {
  const int columns = p->rows > FEW_ROWS ? SOME_COLUMNS : few_rows_columns(*p, blocks);
  p->tasks = 0;
  for (int i = 0; i < p->weights; i++) {
    p->of[i].task = p->paired ? 0 : p->tasks;
    if (!p->paired || !i)
      p->tasks += p->paired ? (p->of->n + columns / 2 - 1) / (columns / 2) : (p->of[i].n + columns - 1) / columns;
  }
}

#endif
