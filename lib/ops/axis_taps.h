/* Cubic resampling along an axis that goes from `from` to `to` points. Output i reads the four points around
 * (i + 1/2) from / to - 1/2, points beyond an end replaced by that end, with the weights of the cubic convolution kernel
 * (Keys, 1981) at a = -0.75. */
#ifndef COMBA_OPS_AXIS_TAPS_H
#define COMBA_OPS_AXIS_TAPS_H

#include "core/host_device.h"
#include "core/real.h"

enum { COMBA_AXIS_TAPS = 4 };

typedef struct comba_axis_taps {
  int64_t place[COMBA_AXIS_TAPS];
  real weight[COMBA_AXIS_TAPS];
} comba_axis_taps;

/* What output `i` of an axis reads; in double, as a float position would shift the taps of long axes. */
static inline COMBA_HOST_DEVICE comba_axis_taps comba_axis_taps_of(int64_t i, int64_t from, int64_t to) {
  const double a = -0.75, position = ((double)i + 0.5) * ((double)from / (double)to) - 0.5, whole = floor(position);
  const double t = position - whole;
  comba_axis_taps taps;
  for (int tap = 0; tap < COMBA_AXIS_TAPS; tap++) {
    const int64_t place = (int64_t)whole + tap - 1;
    const double x = fabs(t - (tap - 1));
    taps.place[tap] = place < 0 ? 0 : (place >= from ? from - 1 : place);
    taps.weight[tap] = (real)(x <= 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : ((x - 5) * x + 8) * x * a - 4 * a);
  }
  return taps;
}

#endif
