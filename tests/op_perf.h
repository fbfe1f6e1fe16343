/* Timing the benchmark cases of the operator table. */
#ifndef COMBA_TESTS_OP_PERF_H
#define COMBA_TESTS_OP_PERF_H

#include "op_case.h"

/* What the machine can do, measured before the cases: the ceilings of the roofline. */
typedef struct op_ceiling {
  double flops; /* best rate of a float32 matrix product, 2048 cubed, a second */
  double bytes; /* rate at which memory is copied (read plus written), a second */
} op_ceiling;
op_ceiling op_measure_ceiling(void);
/* Of a device: a product of activations with a weight, 8192 cubed, and a copy of 1 GiB. */
op_ceiling op_measure_device_ceiling(const comba_backend *backend);
/* Of one call of a kernel on a device. */
double op_device_seconds(const comba_backend *backend, void (*kernel)(const comba_call *), const comba_call *call);

/* One line for forward and one for backward: median time, rates, and the share of what the roofline allows. */
void op_print_perf(const op_variant *variant, int id, const comba_case *c, const op_ceiling *ceiling);

#endif
