/* Kernels of diagonal_decay inside a chunk of 64 tokens: what the matrix products between chunks need, and the gradients of what they
 * are made from. D_ij (K) is the product of the decays of the tokens after j up to i (up to i - 1 for a reader before the decay). Threads
 * multiply it up token by token, so every factor is at most 1 however strong a gate is. */
#ifndef COMBA_SCAN_CUDA_DIAGONAL_H
#define COMBA_SCAN_CUDA_DIAGONAL_H

#include "scan/cuda_chunks.h"

enum { Q, KEY, VALUE, GATE, A, B, OPERANDS };

/* q and a read the state, k and b write to it; without b it is -k, and k writes v - r (the delta rule). */
typedef struct cuda_diagonal {
  cuda_chunks chunks;
  int64_t K, V;
  int64_t heads[OPERANDS]; /* of each operand; 0: absent */
  int readers, writers;
  float scale;
  bool after_decay;              /* a reads the decayed state */
  const void *operand[OPERANDS]; /* (B T, heads, K or V), gates float, the others T */
} cuda_diagonal;

/* What the kernels take from a chunk and the products between chunks, (slots, ...); entries 1 are of a and of b. */
template <class T> struct cuda_diagonal_chunk {
  T *read[2];      /* (CHUNK,K) readers, q times scale, times what is left of the state before the chunk */
  T *carried[2];   /* (CHUNK,K) writers times what is left of them at the chunk's end */
  float *total;    /* (K) what is left of the state at the end */
  T *qk, *qb, *ak; /* (CHUNK,CHUNK) scores sum_c x_ic D_ij,c w_jc, j < i, and j = i for q, which has its scale */
  float *lower;    /* (CHUNK,CHUNK) -ab, or ak in the delta rule */
};

/* Token 0 of a chunk and a head in an operand; rows are `stride` apart. */
template <class U> struct operand_rows {
  const U *first;
  int64_t stride;
};
template <class U>
static __device__ operand_rows<U> rows_of(const cuda_diagonal &d, int operand, const cuda_piece &p, int64_t head) {
  const int64_t heads = d.heads[operand];
  operand_rows<U> rows = {NULL, heads * d.K};
  if (heads) rows.first = (const U *)d.operand[operand] + (p.row * heads + head / (d.chunks.heads / heads)) * d.K;
  return rows;
}

/* Channels first to first + WIDTH of a chunk: decays, 1 for a missing token, readers, q times scale, and writers. */
template <class T, int READERS, int WRITERS, int WIDTH> struct channel_tile {
  float decay[CHUNK][WIDTH], read[READERS][CHUNK][WIDTH], write[WRITERS][CHUNK][WIDTH];

  __device__ void fetch(const cuda_diagonal &d, const cuda_piece &p, int64_t head, int64_t first, int thread,
                        int threads) {
    const operand_rows<float> g = rows_of<float>(d, GATE, p, head);
    const operand_rows<T> reader[2] = {rows_of<T>(d, Q, p, head), rows_of<T>(d, A, p, head)};
    const operand_rows<T> writer[2] = {rows_of<T>(d, KEY, p, head), rows_of<T>(d, B, p, head)};
    for (int x = thread; x < CHUNK * WIDTH; x += threads) {
      const int i = x / WIDTH, c = x % WIDTH;
      const int64_t channel = first + c;
      const bool there = i < p.count && channel < d.K;
      decay[i][c] = there ? decay_of(g.first[i * g.stride + channel]) : 1;
      for (int r = 0; r < READERS; r++)
        read[r][i][c] = there ? load(reader[r].first + i * reader[r].stride + channel) * (r == 0 ? d.scale : 1) : 0;
      for (int w = 0; w < WRITERS; w++)
        write[w][i][c] = there ? load(writer[w].first + i * writer[w].stride + channel) : 0;
    }
  }
};

/* read, carried and total, a thread a channel. */
template <class T> static void find_reach(const cuda_diagonal &d, const cuda_diagonal_chunk<T> &chunk) {
  comba_each(d.chunks.slots * d.K, [=] __device__(int64_t x) {
    const int64_t slot = x / d.K, channel = x % d.K, at = slot * CHUNK * d.K + channel;
    int64_t head;
    const cuda_piece p = piece_of_slot(d.chunks, slot, &head);
    const operand_rows<float> g = rows_of<float>(d, GATE, p, head);
    const operand_rows<T> reader[2] = {rows_of<T>(d, Q, p, head), rows_of<T>(d, A, p, head)};
    const operand_rows<T> writer[2] = {rows_of<T>(d, KEY, p, head), rows_of<T>(d, B, p, head)};
    const bool low_rank = d.readers > 1;
    float left = 1;
    for (int i = 0; i < CHUNK; i++) {
      const bool there = i < p.count;
      const float before = left;
      if (there) left *= decay_of(g.first[i * g.stride + channel]);
      store(chunk.read[0] + at + i * d.K,
            there ? d.scale * load(reader[0].first + i * reader[0].stride + channel) * left : 0);
      if (low_rank)
        store(chunk.read[1] + at + i * d.K,
              there ? load(reader[1].first + i * reader[1].stride + channel) * (d.after_decay ? left : before) : 0);
    }
    chunk.total[x] = left;
    left = 1;
    for (int i = CHUNK - 1; i >= 0; i--) {
      const bool there = i < p.count;
      for (int w = 0; w < d.writers; w++)
        store(chunk.carried[w] + at + i * d.K,
              there ? load(writer[w].first + i * writer[w].stride + channel) * left : 0);
      if (there) left *= decay_of(g.first[i * g.stride + channel]);
    }
  });
}

enum {
  SCORE_ROWS = 16, /* of a thread */
  SCORE_TILE = 8,
  GRADIENT_TILE = 16,
  GRADIENT_ROWS = 16, /* at a time */
};

template <int WIDTH> static __device__ float inner_product(const float *a, const float *b) {
  float sum = 0;
#pragma unroll
  for (int c = 0; c < WIDTH; c++) sum += a[c] * b[c];
  return sum;
}

/* The scores of a slot, a block each: thread (j, y) takes what token j wrote through rows 16 y to 16 y + 15. */
template <class T, int READERS, int WRITERS>
static __global__ void __launch_bounds__(CHUNK *CHUNK / SCORE_ROWS)
    find_scores(const cuda_diagonal d, const cuda_diagonal_chunk<T> chunk) {
  __shared__ __align__(16) channel_tile<T, READERS, WRITERS, SCORE_TILE> tile;
  const int64_t slot = blockIdx.x;
  const int j = threadIdx.x, first = threadIdx.y * SCORE_ROWS;
  const bool lags = !d.after_decay;
  int64_t head;
  const cuda_piece p = piece_of_slot(d.chunks, slot, &head);
  float score[READERS][WRITERS][SCORE_ROWS] = {};
  for (int64_t channel = 0; channel < d.K; channel += SCORE_TILE) {
    __syncthreads();
    tile.fetch(d, p, head, channel, threadIdx.y * CHUNK + j, CHUNK * CHUNK / SCORE_ROWS);
    __syncthreads();
    float written[WRITERS][SCORE_TILE];
    for (int w = 0; w < WRITERS; w++)
      for (int c = 0; c < SCORE_TILE; c++) written[w][c] = tile.write[w][j][c];
    for (int i = j + 1; i < first; i++)
      for (int w = 0; w < WRITERS; w++)
        for (int c = 0; c < SCORE_TILE; c++) written[w][c] *= tile.decay[i][c];
#pragma unroll
    for (int row = 0; row < SCORE_ROWS; row++) {
      const int i = first + row;
#pragma unroll
      for (int w = 0; w < WRITERS; w++) {
        if (READERS > 1 && lags && i > j)
          score[READERS - 1][w][row] += inner_product<SCORE_TILE>(tile.read[READERS - 1][i], written[w]);
#pragma unroll
        for (int c = 0; c < SCORE_TILE; c++)
          if (i > j) written[w][c] *= tile.decay[i][c];
        if (i >= j) score[0][w][row] += inner_product<SCORE_TILE>(tile.read[0][i], written[w]);
        if (READERS > 1 && !lags && i > j)
          score[READERS - 1][w][row] += inner_product<SCORE_TILE>(tile.read[READERS - 1][i], written[w]);
      }
    }
  }
#pragma unroll
  for (int row = 0; row < SCORE_ROWS; row++) {
    const int64_t at = slot * MATRIX + (first + row) * CHUNK + j;
    store(chunk.qk + at, score[0][0][row]);
    if (READERS > 1 && WRITERS == 1) chunk.lower[at] = score[READERS - 1][0][row];
    if (READERS == 1 || WRITERS == 1) continue;
    store(chunk.qb + at, score[0][WRITERS - 1][row]);
    store(chunk.ak + at, score[READERS - 1][0][row]);
    chunk.lower[at] = -score[READERS - 1][WRITERS - 1][row];
  }
}

/* The gradients of the operands, (slots, CHUNK, K) each. On entry those of readers hold the gradient of `read`, those of writers that
 * of `carried`, on return their own. */
typedef struct cuda_diagonal_gradients {
  const float *score[2][2]; /* (slots, CHUNK, CHUNK), of reader and writer */
  const float *across;      /* (slots, K) sum over V of total S dS' */
  float *read[2], *write[2], *gate;
} cuda_diagonal_gradients;

/* A block a slot and tile of channels; a thread takes a token of a channel as reader and as writer. dg of a token is the sum of the
 * paths that cross its decay: from S or a writer before it, to S' or a reader behind it. Those inside the chunk are the ones that have
 * begun less the ones that have ended. */
template <class T, int READERS, int WRITERS>
static __global__ void __launch_bounds__(GRADIENT_TILE *GRADIENT_ROWS)
    find_gradients(const cuda_diagonal d, const cuda_diagonal_gradients f) {
  __shared__ channel_tile<T, READERS, WRITERS, GRADIENT_TILE> tile;
  __shared__ float inside[READERS][CHUNK][GRADIENT_TILE]; /* paths that begin at a token less those that end there */
  __shared__ float from_state[READERS][CHUNK][GRADIENT_TILE];
  const int64_t slot = blockIdx.x, first = (int64_t)blockIdx.y * GRADIENT_TILE;
  const int c = threadIdx.x, lag = d.after_decay ? 0 : 1;
  const int64_t channel = first + c, base = slot * CHUNK * d.K + channel;
  int64_t head;
  const cuda_piece p = piece_of_slot(d.chunks, slot, &head);
  tile.fetch(d, p, head, first, threadIdx.y * GRADIENT_TILE + c, GRADIENT_TILE * GRADIENT_ROWS);
  __syncthreads();
  for (int row = threadIdx.y; row < p.count && channel < d.K; row += GRADIENT_ROWS) {
    const int64_t at = base + row * d.K, matrix = slot * MATRIX;
    float seen[READERS] = {}, decays[READERS], writing[WRITERS] = {}, begun = 0;
    /* token `row` as a reader; decays: D from token j, then from before the chunk */
    for (int r = 0; r < READERS; r++) decays[r] = 1;
    for (int j = row - 1; j >= 0; j--) {
      for (int r = 0; r < READERS; r++) {
        if (r == 0 || !lag || j < row - 1) decays[r] *= tile.decay[j + 1][c];
        for (int w = 0; w < WRITERS; w++)
          seen[r] += f.score[r][w][matrix + row * CHUNK + j] * decays[r] * tile.write[w][j][c];
      }
    }
    for (int r = 0; r < READERS; r++) {
      if (r == 0 || !lag || row > 0) decays[r] *= tile.decay[0][c];
      const float x = tile.read[r][row][c], state = f.read[r][at] * decays[r];
      inside[r][row][c] = -x * seen[r];
      from_state[r][row][c] = x * state;
      seen[r] += state;
    }
    /* as a writer */
    float decay = 1;
    for (int i = row + 1; i < p.count; i++) {
      const float before = decay;
      decay *= tile.decay[i][c];
      for (int r = 0; r < READERS; r++)
        for (int w = 0; w < WRITERS; w++)
          writing[w] += f.score[r][w][matrix + i * CHUNK + row] * (r == 1 && lag ? before : decay) * tile.read[r][i][c];
    }
    for (int w = 0; w < WRITERS; w++) {
      writing[w] += f.write[w][at] * decay;
      begun += writing[w] * tile.write[w][row][c];
      /* q reads what its own token writes: no decay lies between */
      const float own = f.score[0][w][matrix + row * CHUNK + row];
      seen[0] += own * tile.write[w][row][c];
      f.write[w][at] = writing[w] + own * tile.read[0][row][c];
    }
    inside[0][row][c] += begun;
    for (int r = 0; r < READERS; r++) f.read[r][at] = (r == 0 ? d.scale : 1) * seen[r];
  }
  __syncthreads();
  if (threadIdx.y || channel >= d.K) return;
  /* the last decay that a path to reader a crosses is that of the token before, where a lags */
  float sum = 0;
  for (int t = p.count - 1; t >= 0; t--) {
    sum += from_state[0][t][c];
    if (READERS > 1 && t + lag < p.count) sum += from_state[READERS - 1][t + lag][c];
    from_state[0][t][c] = sum;
  }
  sum = f.across[slot * d.K + channel];
  for (int t = 0; t < p.count; t++) {
    f.gate[base + t * d.K] = sum + from_state[0][t][c];
    sum += inside[0][t][c];
    if (READERS > 1 && t + lag < p.count) sum += inside[READERS - 1][t + lag][c];
  }
}

#endif
