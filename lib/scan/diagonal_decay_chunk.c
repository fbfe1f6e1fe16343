/* Diagonal decay in chunks of C = 64 tokens, each of blocks of 16. S is the state (K,V) before the chunk, i and j its tokens,
 * D_ij the product (K) of the decays of the tokens after j up to i (up to i - 1 for a, which reads before the decay). With x a
 * reader (scale q, or a) and w a writer (k, or b) of the state:
 *   A^xw_ij = sum_c x_ic D_ij,c w_jc      for j < i, and j = i where q reads
 *   r = (I - A^ab)^{-1} (a^ S + A^ak v)   the reads S_{t-1}^T a_t
 *   o = q^ S + A^qk v + A^qb r            x^ = x times what is left of S at its token
 *   S' = D S + k~^T v + b~^T r            w~ = w times what is left of it at the end of the chunk
 * Without b, which is then -k, v and r have one writer for their difference, the delta rule:
 *   u = v - r = (I + A^ak)^{-1} (v - a^ S),  o = q^ S + A^qk u,  S' = D S + k~^T u
 * Range: D is a product of decays, taken token by token inside a block; across blocks it is split at the block's start, so
 * that readers carry the decays behind it and writers those before it. Every factor is at most 1: nothing overflows and no
 * sum of gates cancels, however strong gates and weak ones follow each other. */
#include "core/gemm.h"
#include "scan/diagonal_decay.h"

enum { MATRIX = CHUNK * CHUNK, BLOCKS = CHUNK / BLOCK, PAIRS = 2 };

static const int reader[PAIRS] = {Q, A}, writer[PAIRS] = {KEY, B};

/* The same scratch for both passes; forward leaves the second half out. Matrices (C,C) have rows CHUNK apart. */
typedef struct chunk_scratch {
  real *decay;       /* (C,K) e^g */
  real *reach;       /* (BLOCKS, BLOCK + 1, K): products of a block's decays up to each of its tokens, from 1 on */
  real *before;      /* (BLOCKS + 1, K): of all decays before a block */
  real *read[PAIRS]; /* (C,K) readers times the decays from their block's start */
  real *keys;        /* (C,K) */
  real *score[PAIRS][PAIRS];     /* (C,C) A of reader and writer */
  real *lower, *inverse, *merge; /* (C,C) -A^ab, (I - A^ab)^{-1} */
  real *state;                   /* (K,V) S, or its gradient */
  real *values, *reads;          /* (C,V) */
  real *
      written[PAIRS]; /* writers times the decays up to a block's start: rows of the blocks before it. Forward: in place
                         * (C,K); backward keeps those of every block's start, see `boundary` */

  real *gradient[PAIRS][PAIRS]; /* (C,C) of score */
  real *to_read[PAIRS];         /* (C,K) of the readers through earlier blocks and S */
  real *to_written[PAIRS];      /* (C,K) of `written` through later blocks and S' */
  real *no_output;              /* (C,V) zeros */
  real *pair;                   /* (BLOCK,K) D_ij inside a block, for one i */
  real *block[2 * PAIRS + 1];   /* (BLOCK,K) gradients of the readers, the writers and the gates of a block */
  real *sum[4];                 /* (K) */
} chunk_scratch;

/* Lays the scratch out from `base` on and returns its size in reals. */
static int64_t lay_out(chunk_scratch *s, real *base, int64_t K, int64_t V, bool backward) {
  const int64_t boundaries = BLOCK * BLOCKS * (BLOCKS + 1) / 2;
  struct {
    real **array;
    int64_t count, size;
  } const part[] = {
      {&s->decay, 1, CHUNK * K},
      {&s->reach, 1, BLOCKS * (BLOCK + 1) * K},
      {&s->before, 1, (BLOCKS + 1) * K},
      {s->read, PAIRS, CHUNK * K},
      {&s->keys, 1, CHUNK * K},
      {s->score[0], PAIRS * PAIRS, MATRIX},
      {&s->lower, 1, MATRIX},
      {&s->inverse, 1, MATRIX},
      {&s->merge, 1, MATRIX},
      {&s->state, 1, K * V},
      {&s->values, 1, CHUNK * V},
      {&s->reads, 1, CHUNK * V},
      {s->written, PAIRS, (backward ? boundaries : CHUNK) * K},
      {s->gradient[0], PAIRS * PAIRS, MATRIX},
      {s->to_read, PAIRS, CHUNK * K},
      {s->to_written, PAIRS, CHUNK * K},
      {&s->no_output, 1, CHUNK * V},
      {&s->pair, 1, BLOCK * K},
      {s->block, 2 * PAIRS + 1, BLOCK * K},
      {s->sum, 4, K},
  };
  enum { FORWARD_PARTS = 13, PARTS = sizeof part / sizeof *part };
  int64_t offset = 0;
  for (int i = 0; i < (backward ? PARTS : FORWARD_PARTS); i++)
    for (int64_t k = 0; k < part[i].count; k++) {
      part[i].array[k] = base ? base + offset : NULL;
      offset += (part[i].size + 15) / 16 * 16;
    }
  return offset;
}

int64_t COMBA_VARIANT(comba_diagonal_decay_chunk_scratch)(int64_t K, int64_t V, bool backward) {
  chunk_scratch s;
  return lay_out(&s, NULL, K, V, backward);
}

/* One chunk of a head: tokens [start, start + n). */
typedef struct chunk {
  const diagonal_decay_head *h;
  int64_t start, n, K, V;
  int readers, writers; /* q, and a with a low-rank term; k, and b where a writes by another vector than v does */
  bool backward;        /* every `boundary` is kept */
  chunk_scratch *s;
} chunk;

static const real *operand_row(const chunk *c, int operand, int64_t i) {
  return c->h->operand[operand] + (c->start + i) * c->h->stride[operand];
}

/* Whether the reader sees the state before its token's decay. */
static int64_t lag(const chunk *c, int x) {
  return x == 1 && !c->h->after_decay;
}

static real scale_of(const chunk *c, int x) {
  return x == 0 ? c->h->scale : 1;
}

static int64_t block_length(const chunk *c, int64_t block) {
  const int64_t left = c->n - block * BLOCK;
  return left < BLOCK ? left : BLOCK;
}

/* (BLOCK block, K): what the tokens before a block wrote, as left at its start. */
static real *boundary(const chunk *c, int w, int64_t block) {
  return c->s->written[w] + (c->backward ? BLOCK * block * (block - 1) / 2 * c->K : 0);
}

/* The decays from the start of token i's block up to what a reader at i sees. */
static const real *reach_of(const chunk *c, int64_t i, int64_t behind) {
  return c->s->reach + (i / BLOCK * (BLOCK + 1) + i % BLOCK + 1 - behind) * c->K;
}

/* to (K) = a times b, where that is not too small for a normal float. */
static void multiply_decays(int64_t K, const real *a, const real *b, real *to) {
#pragma omp simd
  for (int64_t c = 0; c < K; c++) {
    const real product = a[c] * b[c];
    to[c] = product < (real)1e-37 ? 0 : product;
  }
}

static void multiply(int64_t K, const real *a, const real *b, real *to) {
#pragma omp simd
  for (int64_t c = 0; c < K; c++) to[c] = a[c] * b[c];
}

/* ---- What forward and backward need of a chunk -------------------------------------------------------------------- */

static void find_decay(const chunk *c) {
  const int64_t K = c->K;
  chunk_scratch *s = c->s;
  for (int64_t i = 0; i < K; i++) s->before[i] = 1;
  for (int64_t block = 0; block * BLOCK < c->n; block++) {
    const int64_t m = block_length(c, block);
    real *reach = s->reach + block * (BLOCK + 1) * K;
    for (int64_t i = 0; i < K; i++) reach[i] = 1;
    for (int64_t i = 0; i < m; i++, reach += K) {
      const int64_t token = block * BLOCK + i;
      const real *g = operand_row(c, GATE, token);
      real *decay = s->decay + token * K;
#pragma omp simd
      for (int64_t k = 0; k < K; k++) decay[k] = scan_decay(g[k]);
      multiply_decays(K, reach, decay, reach + K);
    }
    multiply_decays(K, s->before + block * K, reach, s->before + (block + 1) * K);
  }
}

static void find_readers(const chunk *c) {
  for (int x = 0; x < c->readers; x++)
    for (int64_t i = 0; i < c->n; i++) {
      const real *from = operand_row(c, reader[x], i), *reach = reach_of(c, i, lag(c, x)), scale = scale_of(c, x);
      real *to = c->s->read[x] + i * c->K;
#pragma omp simd
      for (int64_t k = 0; k < c->K; k++) to[k] = scale * from[k] * reach[k];
    }
}

/* Row i of score of reader x and writer w against tokens [first, end) of its block, decayed up to i in `written`. */
static void score_row(const chunk *c, int x, int w, int64_t i, int64_t first, int64_t end, const real *written) {
  const real *from = operand_row(c, reader[x], i), scale = scale_of(c, x);
  real *score = c->s->score[x][w] + i * CHUNK;
  memset(score + first, 0, (size_t)(CHUNK - first) * sizeof(real));
  for (int64_t j = first; j < end; j++) score[j] = scale * scan_dot(from, written + j * c->K, c->K);
}

/* All scores, 0 where the reader does not see the writer, and what the chunk's tokens write as left at its end. */
static void find_scores(const chunk *c) {
  const int64_t K = c->K;
  for (int64_t block = 0; block * BLOCK < c->n; block++) {
    const int64_t first = block * BLOCK, m = block_length(c, block);
    for (int w = 0; w < c->writers; w++) {
      const real *from = boundary(c, w, block);
      real *to = boundary(c, w, block + 1);
      for (int x = 0; x < c->readers && block; x++)
        comba_gemm_serial('N', 'T', m, first, K, 1, c->s->read[x] + first * K, K, from, K, 0,
                          c->s->score[x][w] + first * CHUNK, CHUNK);
      for (int64_t j = 0; j < first; j++) multiply(K, from + j * K, reach_of(c, first + m - 1, 0), to + j * K);
      for (int64_t i = first; i < first + m; i++) {
        const real *decay = c->s->decay + i * K;
        if (lag(c, 1) && c->readers > 1) score_row(c, 1, w, i, first, i, to);
        for (int64_t j = first; j < i; j++) multiply(K, to + j * K, decay, to + j * K);
        memcpy(to + i * K, operand_row(c, writer[w], i), (size_t)K * sizeof(real));
        score_row(c, 0, w, i, first, i + 1, to);
        if (!lag(c, 1) && c->readers > 1) score_row(c, 1, w, i, first, i, to);
      }
    }
  }
}

/* Whether k writes v - r (the delta rule), and not k v and b r. */
static bool writes_difference(const chunk *c) {
  return c->readers > c->writers;
}

/* (I - A^ab)^{-1}, or (I + A^ak)^{-1} without b */
static void find_inverse(const chunk *c) {
  chunk_scratch *s = c->s;
  const real *score = s->score[1][c->writers - 1], sign = writes_difference(c) ? 1 : -1;
  for (int64_t i = 0; i < c->n * CHUNK; i++) s->lower[i] = sign * score[i];
  memset(s->lower + c->n * CHUNK, 0, (size_t)((CHUNK - c->n) * CHUNK) * sizeof(real));
  COMBA_VARIANT(comba_unit_lower_inverse)(c->n, s->lower, s->inverse, s->merge);
}

/* keys (n,K): reader x times what is left of S at each token. */
static void reach_state(const chunk *c, int x) {
  for (int64_t i = 0; i < c->n; i++)
    multiply(c->K, c->s->read[x] + i * c->K, c->s->before + i / BLOCK * c->K, c->s->keys + i * c->K);
}

/* (K) what is left of S at the end */
static const real *total_of(const chunk *c) {
  return c->s->before + (c->n + BLOCK - 1) / BLOCK * c->K;
}

static const real *end_of(const chunk *c, int w) {
  return boundary(c, w, (c->n + BLOCK - 1) / BLOCK);
}

static void decay_state(const chunk *c) {
  const real *total = total_of(c);
  for (int64_t i = 0; i < c->K; i++)
#pragma omp simd
    for (int64_t j = 0; j < c->V; j++) c->s->state[i * c->V + j] *= total[i];
}

/* ---- Forward ------------------------------------------------------------------------------------------------------ */

static void forward_chunk(const chunk *c) {
  const diagonal_decay_head *h = c->h;
  chunk_scratch *s = c->s;
  const int64_t n = c->n, K = c->K, V = c->V, output_stride = h->output_stride;
  const real *v = operand_row(c, VALUE, 0);
  int64_t value_stride = h->stride[VALUE];
  real *o = h->o + c->start * output_stride, *reads = h->reads ? h->reads + c->start * output_stride : s->reads;
  const int64_t read_stride = h->reads ? output_stride : V;
  find_decay(c);
  find_readers(c);
  find_scores(c);
  if (c->readers > 1) {
    find_inverse(c);
    reach_state(c, 1);
    if (writes_difference(c)) {
      scan_copy_columns(n, V, v, value_stride, s->values, V);
      comba_gemm_serial('N', 'N', n, V, K, -1, s->keys, K, s->state, V, 1, s->values, V);
    } else {
      comba_gemm_serial('N', 'N', n, V, K, 1, s->keys, K, s->state, V, 0, s->values, V);
      comba_gemm_serial('N', 'N', n, V, n, 1, s->score[1][0], CHUNK, v, value_stride, 1, s->values, V);
    }
    comba_gemm_serial('N', 'N', n, V, n, 1, s->inverse, CHUNK, s->values, V, 0, reads, read_stride);
  }
  if (writes_difference(c)) v = reads, value_stride = read_stride;
  reach_state(c, 0);
  comba_gemm_serial('N', 'N', n, V, K, 1, s->keys, K, s->state, V, 0, o, output_stride);
  comba_gemm_serial('N', 'N', n, V, n, 1, s->score[0][0], CHUNK, v, value_stride, 1, o, output_stride);
  decay_state(c);
  comba_gemm_serial('T', 'N', K, V, n, 1, end_of(c, 0), K, v, value_stride, 1, s->state, V);
  if (c->writers == 1) return;
  comba_gemm_serial('N', 'N', n, V, n, 1, s->score[0][1], CHUNK, reads, read_stride, 1, o, output_stride);
  comba_gemm_serial('T', 'N', K, V, n, 1, end_of(c, 1), K, reads, read_stride, 1, s->state, V);
}

void COMBA_VARIANT(comba_diagonal_decay_chunk_forward)(const diagonal_decay_head *h, real *scratch) {
  chunk_scratch s;
  lay_out(&s, scratch, h->K, h->V, false);
  const int64_t size = h->K * h->V;
  scan_load_state(s.state, h->initial_state, size);
  for (int64_t start = 0; start < h->length; start += CHUNK) {
    const int64_t left = h->length - start;
    if (h->states) scan_load_state(h->states + start / CHUNK * h->state_stride, s.state, size);
    forward_chunk(&(chunk){h, start, left < CHUNK ? left : CHUNK, h->K, h->V, h->readers, h->writers, false, &s});
  }
  memcpy(h->final_state, s.state, (size_t)size * sizeof(real));
}

/* ---- Backward ----------------------------------------------------------------------------------------------------- */

/* A token's decay scales every path that crosses it: from S or a writer before it, to S' or a reader behind it. dg is the sum
 * of just these paths, channel by channel, so that it stays exact where gates are saturated; a difference of sums over all
 * paths would not. `gates` of a block collects the paths that start and end inside it, then those that enter it, leave it, and
 * pass through it. */
enum { RUN, FROM_STATE, ACROSS, PASSING };

/* One pair with score gradient `score`: x (K) sees w (K) through `decays` (K); run (K) += the pair's paths. */
static void pair_gradient(int64_t K, real score, const real *decays, const real *x, const real *w, real *restrict dx,
                          real *restrict dw, real *restrict run) {
#pragma omp simd
  for (int64_t c = 0; c < K; c++) {
    const real p = score * decays[c], seen = p * w[c];
    dx[c] += seen;
    dw[c] += p * x[c];
    run[c] += seen * x[c];
  }
}

/* Reader x at token first + i and the writers of its block that it sees. */
static void reader_gradient(const chunk *c, int x, int64_t first, int64_t i) {
  const int64_t K = c->K, token = first + i, end = x == 0 ? i + 1 : i;
  chunk_scratch *s = c->s;
  real *gates = s->block[2 * PAIRS], *run = s->sum[RUN], *from = s->keys, scale = scale_of(c, x);
  const real *operand = operand_row(c, reader[x], token);
  for (int64_t k = 0; k < K; k++) from[k] = scale * operand[k];
  memset(run, 0, (size_t)K * sizeof(real));
  for (int64_t j = 0; j < end; j++) {
    for (int w = 0; w < c->writers; w++)
      pair_gradient(K, s->gradient[x][w][token * CHUNK + first + j], s->pair + j * K, from,
                    operand_row(c, writer[w], first + j), s->block[x] + i * K, s->block[PAIRS + w] + j * K, run);
    if (j + 1 <= i - lag(c, x)) scan_add(gates + (j + 1) * K, run, K);
  }
}

/* Inside a block: gradients of readers, writers and gates; `pair` is left as the decays up to the block's end. */
static void inside_block(const chunk *c, int64_t first, int64_t m) {
  const int64_t K = c->K;
  chunk_scratch *s = c->s;
  for (int i = 0; i < 2 * PAIRS + 1; i++) memset(s->block[i], 0, (size_t)(m * K) * sizeof(real));
  for (int64_t i = 0; i < m; i++) {
    if (c->readers > 1 && lag(c, 1)) reader_gradient(c, 1, first, i);
    for (int64_t j = 0; j < i; j++) multiply_decays(K, s->pair + j * K, s->decay + (first + i) * K, s->pair + j * K);
    for (int64_t k = 0; k < K; k++) s->pair[i * K + k] = 1;
    reader_gradient(c, 0, first, i);
    if (c->readers > 1 && !lag(c, 1)) reader_gradient(c, 1, first, i);
  }
}

/* to (K) += a b */
static void add_product(int64_t K, const real *a, const real *b, real *restrict to) {
#pragma omp simd
  for (int64_t c = 0; c < K; c++) to[c] += a[c] * b[c];
}

/* What enters the block from S and earlier blocks; these paths cross the gates up to their reader. */
static void enter_block(const chunk *c, int64_t block, int64_t first, int64_t m, real *from_state) {
  const int64_t K = c->K;
  chunk_scratch *s = c->s;
  real *gates = s->block[2 * PAIRS];
  for (int x = 0; x < c->readers; x++) {
    real *to = s->to_read[x] + first * K, *run = s->sum[RUN];
    const real *read = s->read[x] + first * K;
    for (int64_t i = 0; i < m; i++) {
      multiply(K, to + i * K, s->before + block * K, to + i * K);
      add_product(K, read + i * K, to + i * K, from_state);
    }
    for (int w = 0; w < c->writers && block; w++)
      comba_gemm_serial('N', 'N', m, K, first, 1, s->gradient[x][w] + first * CHUNK, CHUNK, boundary(c, w, block), K, 1,
                        to, K);
    memset(run, 0, (size_t)K * sizeof(real));
    for (int64_t i = m - 1; i >= 0; i--) {
      add_product(K, to + i * K, reach_of(c, first + i, lag(c, x)), s->block[x] + i * K);
      add_product(K, to + i * K, read + i * K, run);
      if (i >= lag(c, x)) scan_add(gates + (i - lag(c, x)) * K, run, K);
    }
  }
}

/* What leaves the block for later blocks and S'; these paths cross the gates behind their writer. Then the paths that pass the
 * block, and the gradient of what was written before it. */
static void leave_block(const chunk *c, int64_t block, int64_t first, int64_t m, real *passing) {
  const int64_t K = c->K;
  chunk_scratch *s = c->s;
  real *gates = s->block[2 * PAIRS];
  for (int w = 0; w < c->writers; w++) {
    const real *written = boundary(c, w, block + 1);
    real *to = s->to_written[w];
    for (int64_t j = 0; j < first; j++) {
      add_product(K, written + j * K, to + j * K, passing);
      multiply(K, to + j * K, reach_of(c, first + m - 1, 0), to + j * K);
    }
    for (int x = 0; x < c->readers && block; x++)
      comba_gemm_serial('T', 'N', first, K, m, 1, s->gradient[x][w] + first * CHUNK, CHUNK, s->read[x] + first * K, K,
                        1, to, K);
    for (int64_t j = 0; j < m; j++) add_product(K, s->pair + j * K, to + (first + j) * K, s->block[PAIRS + w] + j * K);
  }
  for (int64_t j = 0; j < m; j++) {
    scan_add(gates + j * K, passing, K);
    for (int w = 0; w < c->writers; w++)
      add_product(K, boundary(c, w, block + 1) + (first + j) * K, s->to_written[w] + (first + j) * K, passing);
  }
}

/* gradient rows of an operand = or += scale from (m,K) */
static void store_rows(const chunk *c, int operand, int64_t first, int64_t m, real scale, const real *from) {
  if (!c->h->gradient[operand]) return;
  real *to = c->h->gradient[operand] + (c->start + first) * c->h->stride[operand];
  const real keep = c->h->accumulate[operand];
  for (int64_t i = 0; i < m; i++, to += c->h->stride[operand], from += c->K)
    if (keep != 0)
      for (int64_t k = 0; k < c->K; k++) to[k] += scale * from[k];
    else
      for (int64_t k = 0; k < c->K; k++) to[k] = scale * from[k];
}

static void backward_blocks(const chunk *c) {
  const int64_t K = c->K;
  chunk_scratch *s = c->s;
  memset(s->sum[FROM_STATE], 0, (size_t)K * sizeof(real));
  for (int64_t block = (c->n - 1) / BLOCK; block >= 0; block--) {
    const int64_t first = block * BLOCK, m = block_length(c, block);
    for (int64_t k = 0; k < K; k++) s->sum[PASSING][k] = s->sum[ACROSS][k] + s->sum[FROM_STATE][k];
    inside_block(c, first, m);
    enter_block(c, block, first, m, s->sum[FROM_STATE]);
    leave_block(c, block, first, m, s->sum[PASSING]);
    for (int x = 0; x < c->readers; x++) store_rows(c, reader[x], first, m, scale_of(c, x), s->block[x]);
    for (int w = 0; w < c->writers; w++) store_rows(c, writer[w], first, m, 1, s->block[PAIRS + w]);
    store_rows(c, GATE, first, m, 1, s->block[2 * PAIRS]);
  }
}

/* s->state holds the gradient of S' on entry and that of S on return. */
static void backward_chunk(const chunk *c) {
  const diagonal_decay_head *h = c->h;
  chunk_scratch *s = c->s;
  const int64_t n = c->n, K = c->K, V = c->V, output_stride = h->output_stride;
  const real *state = h->states + c->start / CHUNK * h->state_stride, *total;
  find_decay(c);
  find_readers(c);
  find_scores(c);

  /* the gradients of what the readers got (without b, r = v - u: minus that of v), and what the writers wrote */
  const real *got[PAIRS] = {s->no_output, s->values}, *wrote[PAIRS] = {operand_row(c, VALUE, 0), NULL};
  int64_t got_stride[PAIRS] = {V, V}, wrote_stride[PAIRS] = {h->stride[VALUE], output_stride};
  if (h->output_gradient) got[0] = h->output_gradient + c->start * output_stride, got_stride[0] = output_stride;
  if (c->readers > 1) {
    const int w = c->writers - 1;
    wrote[w] = h->reads + c->start * output_stride, wrote_stride[w] = output_stride;
    find_inverse(c);
    comba_gemm_serial('N', 'N', n, V, K, 1, end_of(c, w), K, s->state, V, 0, s->reads, V);
    comba_gemm_serial('T', 'N', n, V, n, 1, s->score[0][w], CHUNK, got[0], got_stride[0], 1, s->reads, V);
    comba_gemm_serial('T', 'N', n, V, n, writes_difference(c) ? -1 : 1, s->inverse, CHUNK, s->reads, V, 0, s->values,
                      V);
  }
  if (h->gradient[VALUE] && writes_difference(c)) {
    for (int64_t i = 0; i < n; i++) {
      real *dv = h->gradient[VALUE] + (c->start + i) * h->stride[VALUE];
      const real keep = h->accumulate[VALUE];
      for (int64_t j = 0; j < V; j++) dv[j] = (keep != 0 ? dv[j] : 0) - s->values[i * V + j];
    }
  } else if (h->gradient[VALUE]) {
    real *dv = h->gradient[VALUE] + c->start * h->stride[VALUE];
    const int64_t stride = h->stride[VALUE];
    comba_gemm_serial('N', 'N', n, V, K, 1, end_of(c, 0), K, s->state, V, h->accumulate[VALUE], dv, stride);
    for (int x = 0; x < c->readers; x++)
      comba_gemm_serial('T', 'N', n, V, n, 1, s->score[x][0], CHUNK, got[x], got_stride[x], 1, dv, stride);
  }
  for (int x = 0; x < c->readers; x++) {
    comba_gemm_serial('N', 'T', n, K, V, 1, got[x], got_stride[x], state, V, 0, s->to_read[x], K);
    for (int w = 0; w < c->writers; w++)
      comba_gemm_serial('N', 'T', n, n, V, 1, got[x], got_stride[x], wrote[w], wrote_stride[w], 0, s->gradient[x][w],
                        CHUNK);
  }
  for (int w = 0; w < c->writers; w++)
    comba_gemm_serial('N', 'T', n, K, V, 1, wrote[w], wrote_stride[w], s->state, V, 0, s->to_written[w], K);
  total = total_of(c);
  for (int64_t i = 0; i < K; i++) s->sum[ACROSS][i] = total[i] * scan_dot(state + i * V, s->state + i * V, V);

  decay_state(c);
  for (int x = 0; x < c->readers; x++) {
    reach_state(c, x);
    comba_gemm_serial('T', 'N', K, V, n, 1, s->keys, K, got[x], got_stride[x], 1, s->state, V);
  }
  backward_blocks(c);
}

void COMBA_VARIANT(comba_diagonal_decay_chunk_backward)(const diagonal_decay_head *h, real *scratch) {
  chunk_scratch s;
  lay_out(&s, scratch, h->K, h->V, true);
  const int64_t size = h->K * h->V;
  scan_load_state(s.state, h->final_state_gradient, size);
  memset(s.no_output, 0, (size_t)(CHUNK * h->V) * sizeof(real));
  for (int64_t start = (h->length - 1) / CHUNK * CHUNK; start >= 0 && h->length; start -= CHUNK) {
    const int64_t left = h->length - start;
    backward_chunk(&(chunk){h, start, left < CHUNK ? left : CHUNK, h->K, h->V, h->readers, h->writers, true, &s});
  }
  scan_store_gradient(h->initial_state_gradient, s.state, size, h->accumulate[INITIAL_STATE]);
}
