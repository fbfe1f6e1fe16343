/* An inner loss of what a layer norm makes of z (a memory that ends in a norm), and the way back through its gradient. */
#ifndef COMBA_SCAN_NORMED_LOSS_H
#define COMBA_SCAN_NORMED_LOSS_H

#include "scan/inner_loss.h"

typedef struct normed_loss {
  inner_loss loss;           /* its epsilon is the norm's too */
  const real *weight, *bias; /* (V) of the norm; NULL: the loss is of z itself */
} normed_loss;

/* As comba_inner_loss_forward and _backward. scratch: 5 V. */
void COMBA_VARIANT(comba_normed_loss_forward)(const normed_loss *loss, int64_t rows, const real *z, const real *target,
                                              const real *threshold, real *gradient, real *scratch);
void COMBA_VARIANT(comba_normed_loss_backward)(const normed_loss *loss, int64_t rows, const real *z, const real *target,
                                               const real *threshold, const real *upstream,
                                               const inner_loss_gradients *gradients, real *scratch);

#endif
