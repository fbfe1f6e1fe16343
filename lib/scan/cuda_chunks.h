/* Chunks of 64 tokens for the state engines on a GPU. Tokens are copied into slots, a chunk of one sequence and head each, (steps,
 * lanes, heads, 64, width): without cu_seqlens a lane is a sequence and a step its next chunk; packed sequences follow one another in
 * a single lane, and the state is set anew where one begins. So every product is a batch of equal ones, over all slots, or over those
 * of a step where the state passes from one chunk to the next. A slot's missing tokens are zero. */
#ifndef COMBA_SCAN_CUDA_CHUNKS_H
#define COMBA_SCAN_CUDA_CHUNKS_H

#include "core/cuda_kernel.h"

enum { CHUNK = 64, MATRIX = CHUNK * CHUNK };

typedef struct cuda_chunks {
  int64_t steps, lanes, heads, slots;
  int64_t length, sequences; /* T; N */
  const int32_t *cu_seqlens;
} cuda_chunks;

/* `packed`: there is cu_seqlens, which only kernels read. */
static inline cuda_chunks cuda_chunks_of(int64_t length, int64_t sequences, int64_t heads, bool packed,
                                         const int32_t *cu_seqlens) {
  cuda_chunks c;
  c.lanes = packed ? 1 : sequences;
  c.steps = packed ? length / CHUNK + sequences : (length + CHUNK - 1) / CHUNK;
  c.heads = heads;
  c.slots = c.steps * c.lanes * heads;
  c.length = length;
  c.sequences = sequences;
  c.cu_seqlens = cu_seqlens;
  return c;
}

typedef struct cuda_piece {
  int64_t sequence, row; /* row: of its first token, in (B T) */
  int count;             /* 0 where the slot is not used */
  bool first, last;      /* of its sequence */
} cuda_piece;

static inline __device__ cuda_piece piece_at(const cuda_chunks &c, int64_t step, int64_t lane) {
  cuda_piece p;
  if (!c.cu_seqlens) {
    p.sequence = lane;
    p.row = lane * c.length + step * CHUNK;
    p.count = (int)min((int64_t)CHUNK, c.length - step * CHUNK);
    p.first = step == 0;
    p.last = step == c.steps - 1;
    return p;
  }
  /* the last sequence whose first slot, cu_seqlens[n] / CHUNK + n, is not after `step` */
  int64_t low = 0, high = c.sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (c.cu_seqlens[middle] / CHUNK + middle <= step)
      low = middle;
    else
      high = middle;
  }
  const int64_t local = step - (c.cu_seqlens[low] / CHUNK + low), end = c.cu_seqlens[low + 1];
  p.sequence = low;
  p.row = c.cu_seqlens[low] + local * CHUNK;
  p.count = (int)max((int64_t)0, min((int64_t)CHUNK, end - p.row));
  p.first = local == 0;
  p.last = p.row + p.count == end && (p.count > 0 || p.first);
  return p;
}

/* Slots are as many as blocks of a kernel: divided in 32 bits, for 64 take a hundred instructions. */
static inline __device__ cuda_piece piece_of_slot(const cuda_chunks &c, int64_t slot, int64_t *head) {
  const uint32_t heads = (uint32_t)c.heads, lanes = (uint32_t)c.lanes, chunk = (uint32_t)slot / heads;
  *head = (uint32_t)slot % heads;
  return piece_at(c, chunk / lanes, chunk % lanes);
}

/* Hands out parts of a workspace from `base` on; without one it only counts floats. */
typedef struct cuda_arena {
  float *base;
  int64_t used;
} cuda_arena;

template <class U> static U *take(cuda_arena *arena, int64_t elements) {
  float *part = arena->base ? arena->base + arena->used : NULL;
  arena->used += (elements * (int64_t)sizeof(U) / (int64_t)sizeof(float) + 63) / 64 * 64 + 64;
  return (U *)part;
}

/* c (m,n) = scale a b, or c += scale a b, for each of `batch` slots; a is (m,k) or (k,m), b is (k,n) or (n,k). */
template <class T, class U>
static void multiply(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float scale, const T *a,
                     const T *b, bool accumulate, U *c, int64_t batch) {
  comba_cuda_product product = {};
  product.transpose_a = transpose_a;
  product.transpose_b = transpose_b;
  product.accumulate = accumulate;
  product.m = m;
  product.n = n;
  product.k = k;
  product.lda = transpose_a ? m : k;
  product.ldb = transpose_b ? k : n;
  product.ldc = n;
  product.a = a;
  product.b = b;
  product.c = c;
  product.scale = scale;
  product.batch = batch;
  product.stride_a = m * k;
  product.stride_b = k * n;
  product.stride_c = m * n;
  comba_cuda_multiply(&product, comba_cuda_type_of<T>(), sizeof(U) == sizeof(float));
}

/* to (slots, CHUNK, width) = from (B T, heads, width), zero where `from` is absent */
template <class T> static void pack(const cuda_chunks &c, const T *from, int64_t heads, int64_t width, T *to) {
  const int64_t group = c.heads / heads;
  comba_each(c.slots * CHUNK * width, [=] __device__(int64_t x) {
    const int64_t column = x % width, i = x / width % CHUNK;
    int64_t head;
    const cuda_piece p = piece_of_slot(c, x / width / CHUNK, &head);
    store(to + x, from && i < p.count ? load(from + ((p.row + i) * heads + head / group) * width + column) : 0);
  });
}

/* to (B T, heads, width) = or += what the slots hold: the sum over the heads that share one of `to`, in order. */
template <class T>
static void unpack(const cuda_chunks &c, const float *from, int64_t heads, int64_t width, T *to, bool accumulate) {
  const int64_t group = c.heads / heads;
  if (!to) return;
  comba_each(c.steps * c.lanes * heads * CHUNK * width, [=] __device__(int64_t x) {
    const int64_t column = x % width, i = x / width % CHUNK, head = x / width / CHUNK % heads;
    const int64_t chunk = x / width / CHUNK / heads;
    const cuda_piece p = piece_at(c, chunk / c.lanes, chunk % c.lanes);
    if (i >= p.count) return;
    float sum = 0;
    for (int64_t member = 0; member < group; member++)
      sum += from[((chunk * c.heads + head * group + member) * CHUNK + i) * width + column];
    put(to + ((p.row + i) * heads + head) * width + column, sum, accumulate);
  });
}

/* e^x for x <= 0; what is too small for a normal number is 0 */
static inline __device__ float decay_of(float x) {
  return x < -87 ? 0 : expf(x);
}

/* inverse = (I + L)^-1 of strictly lower L (slots, CHUNK, CHUNK); a block a slot, a thread a column. */
template <class T> static __global__ void invert_unit_lower(const float *lower, T *inverse) {
  __shared__ float L[CHUNK][CHUNK + 1], x[CHUNK][CHUNK + 1];
  const int64_t at = (int64_t)blockIdx.x * MATRIX;
  const int j = threadIdx.x;
  for (int i = 0; i < CHUNK; i++) L[i][j] = lower[at + i * CHUNK + j];
  __syncthreads();
  for (int i = 0; i < CHUNK; i++) {
    float sum = i == j;
    for (int m = j; m < i; m++) sum -= L[i][m] * x[m][j];
    x[i][j] = i < j ? 0 : sum;
    store(inverse + at + i * CHUNK + j, x[i][j]);
  }
}

#endif
