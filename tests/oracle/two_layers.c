#include "two_layers.h"

#include <math.h>

static const double EPSILON = 1e-6;

double oracle_gelu_tanh(double x) {
  return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x) {
  const double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
  return (1 + t) / 2 + x / 2 * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

void oracle_two_layers(int64_t F, int64_t M, const double *memory, const double *x, double *z, double *y) {
  const double *b1 = memory + F * M, *w2 = b1 + M, *b2 = w2 + M * F;
  for (int64_t i = 0; i < M; i++) {
    z[i] = b1[i];
    for (int64_t c = 0; c < F; c++) z[i] += x[c] * memory[c * M + i];
  }
  for (int64_t c = 0; c < F; c++) {
    y[c] = b2[c];
    for (int64_t i = 0; i < M; i++) y[c] += oracle_gelu_tanh(z[i]) * w2[i * F + c];
  }
}

void oracle_two_layers_gradient(int64_t F, int64_t M, const double *memory, const double *x, const double *z,
                                const double *dy, double rate, double *sum) {
  const double *w2 = memory + F * M + M;
  double *db1 = sum + F * M, *dw2 = db1 + M, *db2 = dw2 + M * F;
  for (int64_t i = 0; i < M; i++) {
    double dz = 0;
    for (int64_t c = 0; c < F; c++) {
      dz += dy[c] * w2[i * F + c] * gelu_slope(z[i]);
      dw2[i * F + c] += rate * oracle_gelu_tanh(z[i]) * dy[c];
    }
    for (int64_t c = 0; c < F; c++) sum[c * M + i] += rate * x[c] * dz;
    db1[i] += rate * dz;
  }
  for (int64_t c = 0; c < F; c++) db2[c] += rate * dy[c];
}

double oracle_layer_norm(int64_t F, const double *weight, const double *bias, const double *x, double *normal,
                         double *y) {
  double mean = 0, variance = 0;
  for (int64_t i = 0; i < F; i++) mean += x[i] / (double)F;
  for (int64_t i = 0; i < F; i++) variance += (x[i] - mean) * (x[i] - mean) / (double)F;
  const double deviation = sqrt(variance + EPSILON);
  for (int64_t i = 0; i < F; i++) {
    normal[i] = (x[i] - mean) / deviation;
    y[i] = weight[i] * normal[i] + bias[i];
  }
  return deviation;
}
