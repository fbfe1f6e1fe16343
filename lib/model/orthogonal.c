/* Random matrices with orthonormal rows or columns: Gram and Schmidt's process on N(0,1) rows, in blocks so that most of the work
 * is products, and twice over, since once leaves rounding errors that float32 would show. */
#include "model/orthogonal.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "core/gemm.h"
#include "core/random.h"
#include "core/status.h"

enum { BLOCK = 32, PASSES = 2 };

static double dot(const float *a, const float *b, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
  return sum;
}

/* Makes rows `first` to `end` of q (n,m) orthogonal to those before them and to each other. */
static void orthogonalize(float *q, int64_t m, int64_t first, int64_t end, float *products) {
  float *block = q + first * m;
  const int64_t count = end - first;
  if (first) {
    comba_gemm_f32('N', 'T', count, first, m, 1, block, m, q, m, 0, products, first);
    comba_gemm_f32('N', 'N', count, m, first, -1, products, first, q, m, 1, block, m);
  }
  for (int64_t i = 0; i < count; i++) {
    float *row = block + i * m;
    for (int64_t j = 0; j < i; j++) {
      const float along = (float)dot(row, block + j * m, m);
      for (int64_t c = 0; c < m; c++) row[c] -= along * block[j * m + c];
    }
    const float inverse = (float)(1 / sqrt(dot(row, row, m)));
    for (int64_t c = 0; c < m; c++) row[c] *= inverse;
  }
}

comba_status comba_draw_orthogonal(float *data, int64_t rows, int64_t columns, double gain, uint64_t seed,
                                   uint64_t stream) {
  const bool wide = rows <= columns;
  const int64_t n = wide ? rows : columns, m = wide ? columns : rows;
  float *products = comba_allocate((size_t)(BLOCK * n) * sizeof(float), "an orthogonal matrix");
  float *q = wide ? data : comba_allocate((size_t)(n * m) * sizeof(float), "an orthogonal matrix");
  comba_status status = products && q ? COMBA_OK : COMBA_ERROR_MEMORY;
  if (status != COMBA_OK) goto cleanup;
#pragma omp parallel for
  for (int64_t i = 0; i < n * m; i++) q[i] = (float)comba_random_normal(seed, stream, (uint64_t)i);
  for (int64_t first = 0; first < n; first += BLOCK)
    for (int pass = 0; pass < PASSES; pass++)
      orthogonalize(q, m, first, first + BLOCK < n ? first + BLOCK : n, products);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) data[i * columns + j] = (float)gain * (wide ? q[i * m + j] : q[j * m + i]);

cleanup:
  free(products);
  if (!wide) free(q);
  return status;
}
