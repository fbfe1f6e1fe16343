/* A memory of two layers, one array of 2 F M + M + F numbers: W1 (F,M), b1 (M), W2 (M,F), b2 (F). */
#ifndef COMBA_TESTS_TWO_LAYERS_H
#define COMBA_TESTS_TWO_LAYERS_H

#include <stdint.h>

/* gelu in the form with tanh */
double oracle_gelu_tanh(double x);

/* y (F) = gelu(x W1 + b1) W2 + b2, and in z (M) x W1 + b1 */
void oracle_two_layers(int64_t F, int64_t M, const double *memory, const double *x, double *z, double *y);
/* sum += rate times the gradient of the memory, from that of y and the z of x */
void oracle_two_layers_gradient(int64_t F, int64_t M, const double *memory, const double *x, const double *z,
                                const double *dy, double rate, double *sum);
/* y (F) = weight normal + bias, normal = (x - mean) / deviation, which is returned */
double oracle_layer_norm(int64_t F, const double *weight, const double *bias, const double *x, double *normal,
                         double *y);

#endif
