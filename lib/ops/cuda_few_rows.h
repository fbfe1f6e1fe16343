/* Products x weight^T in which x has few rows, as in decoding, by several weights at once. They are bound by the bytes of the weights,
 * each of which is read once, 16 bytes a thread and access; sums are in float.
 *
 * Up to FEW_ROWS rows a warp has a few columns of y, and its lanes share the sum. Up to SOME_ROWS, in bfloat16, tensor cores have 16
 * columns at a time, and the warps of a block share the sum. */
#ifndef COMBA_OPS_CUDA_FEW_ROWS_H
#define COMBA_OPS_CUDA_FEW_ROWS_H

#include "core/cuda_packet.h"
#include "scan/cuda_tile.h"

enum { FEW_ROWS = 4, SOME_ROWS = 64, FEW_WEIGHTS = 8 };

/* y (rows, n) = x weight^T + bias; rows of x (rows, k) and of the weight (n, k) begin at multiples of 16 bytes */
template <class T> struct few_rows_weight {
  const T *x, *weight, *bias;
  T *y;
  int n, block; /* the first that has columns of it */

  __device__ void put(int row, int column, float sum) const {
    store(y + (int64_t)row * n + column, sum + (bias ? load(bias + column) : 0));
  }
};
template <class T> struct few_rows_product {
  int rows, k, weights;
  few_rows_weight<T> of[FEW_WEIGHTS];

  __device__ const few_rows_weight<T> &own() const {
    int i = 0;
    while (i + 1 < weights && (int)blockIdx.x >= of[i + 1].block) i++;
    return of[i];
  }
};

/* Gives each weight the blocks for its columns; returns their number. */
template <class T> static unsigned few_rows_deal(few_rows_product<T> &p, int columns) {
  int blocks = 0;
  for (int i = 0; i < p.weights; i++) {
    p.of[i].block = blocks;
    blocks += (p.of[i].n + columns - 1) / columns;
  }
  return (unsigned)blocks;
}

/* 16 bytes, zero where there are none */
static __device__ inline uint4 load_bits(const void *from, bool there) {
  return there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
}
template <class T> static __device__ inline packet<T, 16 / sizeof(T)> load_there(const T *from, bool there) {
  const uint4 bits = load_bits(from, there);
  packet<T, 16 / sizeof(T)> values;
  memcpy(&values, &bits, sizeof bits);
  return values;
}

/* ---- Up to four rows ------------------------------------------------------------------------------------------------- */

enum {
  FEW_WARPS = 4,   /* of a block */
  FEW_COLUMNS = 2, /* of a warp */
  FEW_AHEAD =
      4, /* accesses to a row of the weight that are under way, the first of them while the kernel before runs */
  FEW_BYTES =
      8192 /* of a row of x that are in shared memory at a time: so many accesses of a warp, and a multiple of FEW_AHEAD */
};

template <class T, int M>
static __global__ void __launch_bounds__(FEW_WARPS * 32)
    multiply_few_rows(const __grid_constant__ few_rows_product<T> p) {
  constexpr int pack = 16 / sizeof(T), step = 32 * pack, piece = FEW_BYTES / sizeof(T);
  __shared__ uint4 shared[M][FEW_BYTES / 16];
  const few_rows_weight<T> &own = p.own();
  const int lane = threadIdx.x % 32;
  const int first = (((int)blockIdx.x - own.block) * FEW_WARPS + (int)threadIdx.x / 32) * FEW_COLUMNS;
  packet<T, pack> w[FEW_AHEAD][FEW_COLUMNS];
  float sum[M][FEW_COLUMNS] = {};
  const auto read_weight = [&](int i, int c) {
#pragma unroll
    for (int j = 0; j < FEW_COLUMNS; j++)
      w[i][j] = load_there(own.weight + (int64_t)min(first + j, own.n - 1) * p.k + c, c < p.k);
  };
#pragma unroll
  for (int i = 0; i < FEW_AHEAD; i++) read_weight(i, lane * pack + i * step);
  comba_chain_next();
  comba_chain_wait();
  for (int begin = 0; begin < p.k; begin += piece) {
    const int end = min(p.k, begin + piece);
    if (begin) __syncthreads();
#pragma unroll
    for (int m = 0; m < M; m++)
      for (int c = begin + threadIdx.x * pack;
           c < (end + FEW_AHEAD * step - 1) / (FEW_AHEAD * step) * (FEW_AHEAD * step); c += FEW_WARPS * step)
        copy_async(&shared[m][(c - begin) / pack], own.x + (int64_t)min(m, p.rows - 1) * p.k + (c < end ? c : 0),
                   c < end);
    close_copies();
    wait_for_copies<0>();
    __syncthreads();
    for (int from = begin; from < end; from += FEW_AHEAD * step)
#pragma unroll
      for (int i = 0; i < FEW_AHEAD; i++) {
        const int c = from + i * step + lane * pack;
#pragma unroll
        for (int m = 0; m < M; m++) {
          packet<T, pack> x;
          memcpy(&x, &shared[m][(c - begin) / pack], sizeof x);
#pragma unroll
          for (int j = 0; j < FEW_COLUMNS; j++)
#pragma unroll
            for (int e = 0; e < pack; e++) sum[m][j] += x[e] * w[i][j][e];
        }
        read_weight(i, c + FEW_AHEAD * step);
      }
  }
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int j = 0; j < FEW_COLUMNS; j++) {
      const float total = warp_sum(sum[m][j]);
      if (!lane && m < p.rows && first + j < own.n) own.put(m, first + j, total);
    }
}

/* ---- Up to 64 rows --------------------------------------------------------------------------------------------------- */

enum {
  SOME_WARPS = 8, /* of a block: warp w sums over every eighth STEP of k */
  SOME_STEP =
      32, /* channels at a time, 8 of a lane: two products of 16, whose order of channels is the same for both factors */
  SOME_COLUMNS = 16, /* of y that a product has */
  SOME_AHEAD = 4,    /* steps that are under way: of the weight in registers, of x in shared memory */
};

/* Each lane copies to shared memory what it reads there itself. */
template <int TILES> constexpr int some_rows_bytes = SOME_AHEAD *TILES *SOME_WARPS * 32 * 16;

/* TILES: of 8 rows of x. BANDS: of SOME_COLUMNS columns of y, a block's. y^T = weight x^T, so a row of the weight is one of the product. */
template <int TILES, int BANDS>
static __global__ void __launch_bounds__(SOME_WARPS * 32)
    multiply_some_rows(const __grid_constant__ few_rows_product<bfloat16> p) {
  constexpr int apart = SOME_WARPS * SOME_STEP;
  extern __shared__ int4 shared[];
  __shared__ float part[SOME_WARPS][TILES * 8][SOME_COLUMNS + 1];
  const few_rows_weight<bfloat16> &own = p.own();
  const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4, channel = threadIdx.x % 4 * 8;
  const int first = ((int)blockIdx.x - own.block) * BANDS * SOME_COLUMNS;
  uint4 w[SOME_AHEAD][BANDS][2];
  float sum[BANDS][TILES][4] = {};
  const auto read_weight = [&](int i, int c) {
#pragma unroll
    for (int b = 0; b < BANDS; b++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int column = min(first + b * SOME_COLUMNS + half * 8 + row, own.n - 1);
        w[i][b][half] = load_bits(own.weight + (int64_t)column * p.k + c, c < p.k);
      }
  };
  const auto place = [&](int i, int n) { return shared + (i * TILES + n) * SOME_WARPS * 32 + threadIdx.x; };
  const auto copy_x = [&](int i, int c) {
#pragma unroll
    for (int n = 0; n < TILES; n++)
      copy_async(place(i, n), own.x + (int64_t)min(n * 8 + row, p.rows - 1) * p.k + (c < p.k ? c : 0), c < p.k);
    close_copies();
  };
#pragma unroll
  for (int i = 0; i < SOME_AHEAD; i++) read_weight(i, warp * SOME_STEP + channel + i * apart);
  comba_chain_next();
  comba_chain_wait();
#pragma unroll
  for (int i = 0; i < SOME_AHEAD; i++) copy_x(i, warp * SOME_STEP + channel + i * apart);
  for (int from = warp * SOME_STEP; from < p.k; from += SOME_AHEAD * apart)
#pragma unroll
    for (int i = 0; i < SOME_AHEAD; i++) {
      const int c = from + channel + i * apart;
      wait_for_copies<SOME_AHEAD - 1>();
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        const int4 x = *place(i, n);
#pragma unroll
        for (int b = 0; b < BANDS; b++) {
          const uint4 near = w[i][b][0], far = w[i][b][1];
          const uint32_t low[4] = {near.x, far.x, near.y, far.y}, high[4] = {near.z, far.z, near.w, far.w};
          multiply_add(sum[b][n], low, (uint32_t)x.x, (uint32_t)x.y);
          multiply_add(sum[b][n], high, (uint32_t)x.z, (uint32_t)x.w);
        }
      }
      read_weight(i, c + SOME_AHEAD * apart);
      copy_x(i, c + SOME_AHEAD * apart);
    }
#pragma unroll
  for (int b = 0; b < BANDS; b++) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) part[warp][n * 8 + threadIdx.x % 4 * 2 + i % 2][row + i / 2 * 8] = sum[b][n][i];
    __syncthreads();
    for (int i = threadIdx.x; i < TILES * 8 * SOME_COLUMNS; i += SOME_WARPS * 32) {
      const int m = i / SOME_COLUMNS, column = i % SOME_COLUMNS;
      float total = 0;
#pragma unroll
      for (int k = 0; k < SOME_WARPS; k++) total += part[k][m][column];
      if (m < p.rows && first + b * SOME_COLUMNS + column < own.n) own.put(m, first + b * SOME_COLUMNS + column, total);
    }
  }
}

/* ---- Both ------------------------------------------------------------------------------------------------------------ */

template <class T> static bool few_rows_fit(int64_t rows, int64_t n, int64_t k) {
  const bool some = sizeof(T) == sizeof(bfloat16) && rows <= SOME_ROWS &&
                    n <= 1 << 13 /* wider ones fill cuBLASLt's tiles */ && comba_cuda_shared_bytes() >= 163 << 10;
  return (rows <= FEW_ROWS || some) && k % (16 / (int)sizeof(T)) == 0 && n < 1 << 30 && k <= 1 << 20;
}

template <class T>
static void few_rows_launch(void (*kernel)(few_rows_product<T>), few_rows_product<T> p, int columns, int warps,
                            int bytes) {
  const unsigned blocks = few_rows_deal(p, columns);
  comba_chain("a product with few rows", kernel, blocks, warps * 32, bytes, 1, p);
}

template <int TILES> static void multiply_some(const few_rows_product<bfloat16> &p) {
  enum { PROCESSORS = 132 }; /* of an H100: one block each, of as many bands as it takes */
  few_rows_product<bfloat16> q = p;
  int bands = 1;
  while (bands < 3 && few_rows_deal(q, bands * SOME_COLUMNS) > PROCESSORS) bands++;
  const auto kernel = bands == 1   ? multiply_some_rows<TILES, 1>
                      : bands == 2 ? multiply_some_rows<TILES, 2>
                                   : multiply_some_rows<TILES, 3>;
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, some_rows_bytes<TILES>),
                  "a product with few rows");
  few_rows_launch(kernel, p, bands * SOME_COLUMNS, SOME_WARPS, some_rows_bytes<TILES>);
}
static void multiply_some(const few_rows_product<bfloat16> &p) {
  p.rows <= 16 ? multiply_some<2>(p) : p.rows <= 32 ? multiply_some<4>(p) : multiply_some<8>(p);
}
static void multiply_some(const few_rows_product<float> &) {
}

template <class T> static void few_rows_multiply(const few_rows_product<T> &p) {
  if (p.rows > FEW_ROWS)
    multiply_some(p);
  else
    few_rows_launch(p.rows == 1   ? multiply_few_rows<T, 1>
                    : p.rows == 2 ? multiply_few_rows<T, 2>
                                  : multiply_few_rows<T, FEW_ROWS>,
                    p, FEW_WARPS * FEW_COLUMNS, FEW_WARPS, 0);
}

#endif
