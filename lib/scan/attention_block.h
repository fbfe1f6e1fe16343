/* A block of query rows of one head against runs of keys, with the softmax taken over the runs one after the other
 * (FlashAttention, arXiv 2205.14135, Algorithm 1): row i keeps its largest score so far and the sum of e^(score - largest),
 * and what it has summed up shrinks when a larger score comes. Rows are strided, so heads are read where they lie. */
#ifndef COMBA_SCAN_ATTENTION_BLOCK_H
#define COMBA_SCAN_ATTENTION_BLOCK_H

#include "core/gemm.h"
#include "core/op.h"
#include "ops/ops.h"

enum { QUERY_BLOCK = 64, KEY_BLOCK = 512 };

/* Between rows of scores, for runs of at most `keys` keys: not a power of two, since rows would then share cache sets
 * where products read columns. */
static inline int64_t attention_score_stride(int64_t keys) {
  return (keys < KEY_BLOCK ? (keys + 15) / 16 * 16 : KEY_BLOCK) + 16;
}

/* Which keys a token sees: those of [attention_first, attention_end). Both grow with the token. */
static inline int64_t attention_first(const comba_attention_attributes *a, int64_t token) {
  return a->causal && a->window && token >= a->window ? token - a->window + 1 : 0;
}
static inline int64_t attention_end(const comba_attention_attributes *a, int64_t token, int64_t length) {
  return a->causal && token + 1 < length ? token + 1 : length;
}

static inline real attention_scale(const comba_attention_attributes *a, int64_t D) {
  return (real)(a->scale != 0 ? a->scale : 1 / sqrt((double)D));
}

typedef struct attention_queries {
  const comba_attention_attributes *attributes;
  int64_t rows, D, stride; /* at most QUERY_BLOCK rows; stride between rows of q, and of o */
  int64_t token, step;     /* row i is token number token + i step */
  const real *q;
  real *o;
  int64_t score_stride;
  real *scores; /* (rows, score_stride) */
  real largest[QUERY_BLOCK], sum[QUERY_BLOCK];
} attention_queries;

/* Consecutive keys and values; the first is token number `token`. */
typedef struct attention_keys {
  const real *k, *v;
  int64_t stride, token, count;
} attention_keys;

/* The keys of one score block that row `row` sees are columns [*first, *end); *end <= *first: none. */
static inline void attention_columns(const attention_queries *queries, int64_t row, const attention_keys *keys,
                                     int64_t *first, int64_t *end) {
  const int64_t token = queries->token + row * queries->step;
  const int64_t low = attention_first(queries->attributes, token) - keys->token;
  *first = low > 0 ? low : 0;
  *end = attention_end(queries->attributes, token, keys->token + keys->count) - keys->token;
}

/* scores = scale q k^T; keys->count <= KEY_BLOCK */
static inline void attention_scores(const attention_queries *queries, const attention_keys *keys) {
  const real scale = attention_scale(queries->attributes, queries->D);
  comba_gemm_serial('N', 'T', queries->rows, keys->count, queries->D, scale, queries->q, queries->stride, keys->k,
                    keys->stride, 0, queries->scores, queries->score_stride);
}

/* Turns a row of scores into e^(score - largest), zero where masked, after the row's running values. */
static inline void attention_add_row(attention_queries *queries, int64_t row, const attention_keys *keys) {
  real *score = queries->scores + row * queries->score_stride, *o = queries->o + row * queries->stride;
  int64_t first, end;
  attention_columns(queries, row, keys, &first, &end);
  if (end <= first) {
    memset(score, 0, (size_t)keys->count * sizeof(real));
    return;
  }
  real largest = queries->largest[row], sum = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t j = first; j < end; j++) largest = score[j] > largest ? score[j] : largest;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = first; j < end; j++) {
    score[j] = comba_exp(score[j] - largest);
    sum += score[j];
  }
  memset(score, 0, (size_t)first * sizeof(real));
  memset(score + end, 0, (size_t)(keys->count - end) * sizeof(real));
  if (largest > queries->largest[row]) {
    const real shrink = comba_exp(queries->largest[row] - largest);
    queries->sum[row] *= shrink;
    for (int64_t d = 0; d < queries->D; d++) o[d] *= shrink;
  }
  queries->largest[row] = largest;
  queries->sum[row] += sum;
}

static inline void attention_begin(attention_queries *queries) {
  for (int64_t row = 0; row < queries->rows; row++) {
    queries->largest[row] = -INFINITY;
    queries->sum[row] = 0;
    memset(queries->o + row * queries->stride, 0, (size_t)queries->D * sizeof(real));
  }
}

static inline attention_keys attention_key_block(const attention_keys *keys, int64_t first) {
  const int64_t rest = keys->count - first;
  return (attention_keys){keys->k + first * keys->stride, keys->v + first * keys->stride, keys->stride,
                          keys->token + first, rest < KEY_BLOCK ? rest : KEY_BLOCK};
}

static inline void attention_add(attention_queries *queries, const attention_keys *keys) {
  for (int64_t first = 0; first < keys->count; first += KEY_BLOCK) {
    const attention_keys block = attention_key_block(keys, first);
    attention_scores(queries, &block);
    for (int64_t row = 0; row < queries->rows; row++) attention_add_row(queries, row, &block);
    comba_gemm_serial('N', 'N', queries->rows, queries->D, block.count, 1, queries->scores, queries->score_stride,
                      block.v, block.stride, 1, queries->o, queries->stride);
  }
}

static inline void attention_finish(const attention_queries *queries) {
  for (int64_t row = 0; row < queries->rows; row++) {
    const real inverse = 1 / queries->sum[row];
    real *o = queries->o + row * queries->stride;
    for (int64_t d = 0; d < queries->D; d++) o[d] *= inverse;
  }
}

#endif
