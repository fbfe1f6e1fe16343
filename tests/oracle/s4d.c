#include "s4d.h"

#include <complex.h>

/* K_j of channel c */
static double kernel(oracle_model *oracle, int64_t c, int64_t j) {
  const int64_t M = oracle_extent(oracle, "A_imag", 1);
  const double *rate = oracle_weight_of(oracle, "log_A_real"), *frequency = oracle_weight_of(oracle, "A_imag");
  const double *C = oracle_weight_of(oracle, "C"), dt = exp(oracle_weight_of(oracle, "log_dt")[c]);
  double sum = 0;
  for (int64_t m = c * M; m < (c + 1) * M; m++) {
    const double complex A = -exp(rate[m]) + I * frequency[m];
    sum += 2 * creal((C[2 * m] + I * C[2 * m + 1]) * (cexp(dt * A) - 1) / A * cexp(dt * A * (double)j));
  }
  return sum;
}

static double *mix(oracle_model *oracle, const double *x) {
  const int64_t T = oracle->length, d = oracle->hidden;
  const double *D = oracle_weight_of(oracle, "D");
  double *y = oracle_zeros(oracle, T * d), *out = oracle_zeros(oracle, T * d), *K = oracle_zeros(oracle, T);
  for (int64_t c = 0; c < d; c++) {
    for (int64_t j = 0; j < T; j++) K[j] = kernel(oracle, c, j);
    for (int64_t t = 0; t < T; t++) {
      double sum = D[c] * x[t * d + c];
      for (int64_t j = 0; j <= t; j++) sum += K[j] * x[(t - j) * d + c];
      y[t * d + c] = sum * (1 + erf(sum / sqrt(2))) / 2;
    }
  }
  const double *both = oracle_linear(oracle, "o_proj", y);
  for (int64_t i = 0; i < T * d; i++) {
    const double *row = both + i / d * 2 * d + i % d;
    out[i] = row[0] * oracle_sigmoid(row[d]);
  }
  return out;
}

const oracle_family oracle_s4d = {.mix = mix, .gates = "log_dt"};
