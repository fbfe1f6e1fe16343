/* What operators over rows share. Everything before the last dimension counts as rows: (..., d) is rows of d elements. */
#ifndef COMBA_OPS_ROWS_H
#define COMBA_OPS_ROWS_H

#include "core/op.h"
#include "core/parallel.h"

enum {
  COMBA_TILE = 1024, /* elements that an element-wise loop handles at a time: a few tiles fit the first-level cache */
  COMBA_SERIAL = 16384, /* elements up to which starting the threads costs more than it saves */
};

static inline int64_t comba_last(const comba_shape *shape) {
  return shape->size[shape->rank - 1];
}

static inline int64_t comba_rows(const comba_shape *shape) {
  int64_t rows = 1;
  for (int i = 0; i < shape->rank - 1; i++) rows *= shape->size[i];
  return rows;
}

/* Whether an operand has the shape of x, or is one row (d) for all rows of x; and the elements from one of its rows to the next. */
static inline bool comba_is_row_or_all(const comba_shape *operand, const comba_shape *x) {
  return (operand->rank == 1 && operand->size[0] == comba_last(x)) || comba_shape_equal(operand, x);
}
static inline int64_t comba_row_step(const comba_shape *operand) {
  return operand->rank == 1 ? 0 : comba_last(operand);
}

static inline int64_t comba_tiles(int64_t elements) {
  return (elements + COMBA_TILE - 1) / COMBA_TILE;
}

/* Elements of tile `tile`: all but the last are full. */
static inline int64_t comba_tile_size(int64_t elements, int64_t tile) {
  const int64_t left = elements - tile * COMBA_TILE;
  return left < COMBA_TILE ? left : COMBA_TILE;
}

/* Blocks for a sum over rows of `size` elements: never more than rows, so that a partial sum a block is no larger than
 * the operand. */
static inline int64_t comba_row_blocks(int64_t rows, int64_t size) {
  return comba_blocks(rows, COMBA_SERIAL / 4 / size + 1);
}

/* out (n) = or += value (n). The two do not overlap. */
static inline void comba_store(real *restrict out, const real *restrict value, int64_t n, bool accumulate) {
  if (accumulate)
    for (int64_t i = 0; i < n; i++) out[i] += value[i];
  else
    memcpy(out, value, (size_t)n * sizeof(real));
}

/* out (n) = or += scale value (n). The two do not overlap. */
static inline void comba_store_scaled(real *restrict out, real scale, const real *restrict value, int64_t n,
                                      bool accumulate) {
  if (accumulate)
    for (int64_t i = 0; i < n; i++) out[i] += scale * value[i];
  else
    for (int64_t i = 0; i < n; i++) out[i] = scale * value[i];
}

static inline real comba_dot(const real *a, const real *b, int64_t n) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

/* out (n) = or += sum over blocks of partial (blocks, n), in the order of the blocks */
static inline void comba_store_blocks(real *restrict out, const real *restrict partial, int64_t blocks, int64_t n,
                                      bool accumulate) {
  for (int64_t block = 0; block < blocks; block++) comba_store(out, partial + block * n, n, accumulate || block > 0);
}

/* Norms by groups of channels have a weight for each of them: x (..., g, d), weight (g d). Returns g, 1 where the weight (d) is
 * one for all rows or there is none, and 0 where it does not fit; row r then has weight + r % g * d. */
static inline int64_t comba_weight_groups(const comba_shape *x, const comba_shape *weight) {
  const int64_t d = comba_last(x);
  if (weight->rank == 0 || (weight->rank == 1 && weight->size[0] == d)) return 1;
  return x->rank > 1 && weight->rank == 1 && weight->size[0] == x->size[x->rank - 2] * d ? x->size[x->rank - 2] : 0;
}

/* The epsilon under the root of a norm. */
static inline comba_status comba_infer_epsilon(const comba_signature *signature, double epsilon) {
  if (epsilon >= 0 && epsilon < HUGE_VAL) return COMBA_OK;
  return comba_fail(COMBA_ERROR_ARGUMENT, "%s: epsilon is %g, expected a finite number >= 0", signature->op, epsilon);
}

#endif
