/* gelu in its form with tanh, x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x sigmoid(w) with w = x (a + b x^2): the form
 * with sigmoid keeps the digits of the far tail. */
#ifndef COMBA_OPS_GELU_H
#define COMBA_OPS_GELU_H

#include "core/real.h"

static const real COMBA_GELU_A = (real)1.5957691216057308, COMBA_GELU_B = (real)0.07135481627260025;

/* Its value, and its derivative into `slope`. */
static inline real comba_gelu_tanh(real x, real *slope) {
  const real squared = COMBA_GELU_B * x * x, s = comba_sigmoid(x * (COMBA_GELU_A + squared));
  *slope = s + x * s * (1 - s) * (COMBA_GELU_A + 3 * squared);
  return x * s;
}

/* Its second derivative. */
static inline real comba_gelu_tanh_curve(real x) {
  const real squared = COMBA_GELU_B * x * x, s = comba_sigmoid(x * (COMBA_GELU_A + squared));
  const real slope = COMBA_GELU_A + 3 * squared; /* of w */
  return s * (1 - s) * (2 * slope + 6 * squared + x * slope * slope * (1 - 2 * s));
}

#endif
