/* What several suites repeat. */
#ifndef COMBA_TESTS_TESTING_H
#define COMBA_TESTS_TESTING_H

#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "core/random.h"

/* Frobenius norm of found - expected, over that of expected, or over that of values of 0.05 where expected is smaller:
 * operands are of order one, and what cancels to nothing leaves the rounding errors of the terms that cancelled. */
static inline double relative_error(const double *found, const double *expected, int64_t count) {
  double error = 0, scale = 0;
  for (int64_t i = 0; i < count; i++) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    scale += expected[i] * expected[i];
  }
  return count ? sqrt(error) / fmax(sqrt(scale), 0.05 * sqrt((double)count)) : 0;
}

#define ck_assert_close(found, expected, count, tolerance)                                                             \
  do {                                                                                                                 \
    const double error_ = relative_error(found, expected, count);                                                      \
    ck_assert_msg(error_ <= (tolerance), "%s against %s: relative error %.3g, tolerance %.3g", #found, #expected,      \
                  error_, (double)(tolerance));                                                                        \
  } while (0)

/* N(0, 1) times scale; every value is a float32, so that float and double kernels see the same. */
static inline void fill_normal(double *values, int64_t count, double scale, uint64_t stream) {
  for (int64_t i = 0; i < count; i++) values[i] = (float)(scale * comba_random_normal(11, stream, (uint64_t)i));
}

static inline void fill_uniform(double *values, int64_t count, double low, double high, uint64_t stream) {
  for (int64_t i = 0; i < count; i++)
    values[i] = (float)(low + (high - low) * comba_random_uniform(11, stream, (uint64_t)i));
}

static inline void fill_constant(double *values, int64_t count, double value) {
  for (int64_t i = 0; i < count; i++) values[i] = (float)value;
}

/* Rows of N(0, 1) scaled to length 1. */
static inline void fill_unit(double *values, int64_t rows, int64_t length, uint64_t stream) {
  fill_normal(values, rows * length, 1, stream);
  for (int64_t row = 0; row < rows; row++) {
    double sum = 0;
    for (int64_t i = 0; i < length; i++) sum += values[row * length + i] * values[row * length + i];
    for (int64_t i = 0; i < length; i++) values[row * length + i] = (float)(values[row * length + i] / sqrt(sum));
  }
}

/* Runs the suite in this process (OpenMP's threads do not survive fork) and returns main's exit status. */
static inline int run_suite(Suite *suite) {
  SRunner *runner = srunner_create(suite);
  srunner_set_fork_status(runner, CK_NOFORK);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
