/* The number type of lib/ops and lib/scan, and the names of what is compiled several times.
 *
 * Those two folders are compiled once for each variant: float for baseline x86-64 (or any other machine), x86-64-v3 and
 * x86-64-v4, and double as the oracle of the tests. The build defines COMBA_VARIANT_NAME (baseline, v3, v4, oracle), and
 * COMBA_REAL_DOUBLE for the oracle. Anything with external linkage in those folders is named through COMBA_VARIANT. */
#ifndef COMBA_CORE_REAL_H
#define COMBA_CORE_REAL_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef COMBA_VARIANT_NAME
#define COMBA_VARIANT_NAME baseline
#endif
#define COMBA_PASTE_(a, b) a##_##b
#define COMBA_PASTE(a, b) COMBA_PASTE_(a, b)
/* COMBA_VARIANT(comba_op_linear) is comba_op_linear_v4 in the v4 variant. */
#define COMBA_VARIANT(name) COMBA_PASTE(name, COMBA_VARIANT_NAME)

#ifdef COMBA_REAL_DOUBLE
typedef double real;
#else
typedef float real;
#endif

/* e^x. float: 2^n times a degree-6 polynomial on [-ln2/2, ln2/2], without a branch so that loops vectorise; under 2 units in the
 * last place for x in [-87, 88]; a denormal number, then 0 below -87.33 and infinity above 88.72. double: the C library's. */
static inline real comba_exp(real x) {
#ifdef COMBA_REAL_DOUBLE
  return exp(x);
#else
  const float clamped = x < -104.0f ? -104.0f : (x > 89.0f ? 89.0f : x);
  /* 1.5 * 2^23 leaves the nearest whole number in the low bits of the sum; taken from there, a NaN is no trouble either */
  const union {
    float value;
    uint32_t bits;
  } rounded = {clamped * 1.44269504088896341f + 12582912.0f};
  const float n = rounded.value - 12582912.0f;
  float r = clamped - n * 0.693359375f; /* ln 2 in two parts, so that r keeps all its bits */
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f; /* minimax coefficients, Cephes expf */
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  /* 2^n as a product of two powers, so that n from -150 to 128 stays representable */
  const int32_t whole = (int32_t)(rounded.bits - 0x4B400000u), half = whole >> 1;
  union {
    uint32_t bits;
    float value;
  } low = {(uint32_t)(half + 127) << 23}, high = {(uint32_t)(whole - half + 127) << 23};
  return p * low.value * high.value;
#endif
}

static inline real comba_sigmoid(real x) {
  return 1 / (1 + comba_exp(-x));
}

/* ln(1 + e^x), without overflow and exact to rounding for every x. */
static inline real comba_softplus(real x) {
#ifdef COMBA_REAL_DOUBLE
  return x > 40 ? x : log1p(exp(x));
#else
  return x > 20 ? x : log1pf(comba_exp(x));
#endif
}

#ifdef COMBA_REAL_DOUBLE
#define comba_real_sqrt sqrt
#define comba_real_tanh tanh
#define comba_real_erf erf
#define comba_real_log log
#define comba_real_abs fabs
#else
#define comba_real_sqrt sqrtf
#define comba_real_tanh tanhf
#define comba_real_erf erff
#define comba_real_log logf
#define comba_real_abs fabsf
#endif

#endif
