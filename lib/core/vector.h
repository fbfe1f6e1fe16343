/* Vectors of the processor, for kernels that keep a tile of sums in registers: TILE_ROWS times two vectors. COMBA_VECTORS is
 * whether there are some with which this beats general products: AVX2 and AVX-512. The oracle takes general products, so that the
 * tests compare the two. */
#ifndef COMBA_CORE_VECTOR_H
#define COMBA_CORE_VECTOR_H

#include "core/real.h"

#if defined __AVX2__ && !defined COMBA_REAL_DOUBLE
#include <immintrin.h>
#define COMBA_VECTORS 1
#else
#define COMBA_VECTORS 0
#endif

#if COMBA_VECTORS && defined __AVX512F__
enum { VECTOR_BYTES = 64, TILE_ROWS = 8 }; /* of 32 registers, 16 hold sums */
#elif COMBA_VECTORS
enum { VECTOR_BYTES = 32, TILE_ROWS = 4 };
#else
enum { VECTOR_BYTES = 16, TILE_ROWS = 4 };
#endif
enum { LANES = VECTOR_BYTES / sizeof(real) };

typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef int32_t index_vector __attribute__((vector_size(VECTOR_BYTES)));

/* The first `count` lanes, 1 to LANES; loaded, the others are 0; stored, they stay as they were. */
#if COMBA_VECTORS && defined __AVX512F__
static inline vector vector_load_first(const real *from, int64_t count) {
  return (vector)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
}
static inline void vector_store_first(real *to, int64_t count, vector value) {
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
}
#elif COMBA_VECTORS
static inline __m256i vector_first(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vector vector_load_first(const real *from, int64_t count) {
  return (vector)_mm256_maskload_ps(from, vector_first(count));
}
static inline void vector_store_first(real *to, int64_t count, vector value) {
  _mm256_maskstore_ps(to, vector_first(count), (__m256)value);
}
#else
static inline vector vector_load_first(const real *from, int64_t count) {
  vector value = {0};
  for (int64_t i = 0; i < count; i++) value[i] = from[i];
  return value;
}
static inline void vector_store_first(real *to, int64_t count, vector value) {
  for (int64_t i = 0; i < count; i++) to[i] = value[i];
}
#endif

#endif
