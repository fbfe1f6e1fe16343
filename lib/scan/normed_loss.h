/* An inner loss of what a layer norm makes of z (a memory that ends in a norm), and the way back through its gradient. */
#ifndef COMBA_SCAN_NORMED_LOSS_H
#define COMBA_SCAN_NORMED_LOSS_H

#include "scan/inner_loss.h"

/* As comba_inner_loss_forward and _backward, with LN(z) in place of z; LN has weight and bias (V), loss.attributes.epsilon.
 * scratch: 5 V. */
void COMBA_VARIANT(comba_normed_loss_forward)(const inner_loss *loss, const real *weight, const real *bias,
                                              int64_t rows, const real *z, const real *target, const real *threshold,
                                              real *gradient, real *scratch);
void COMBA_VARIANT(comba_normed_loss_backward)(const inner_loss *loss, const real *weight, const real *bias,
                                               int64_t rows, const real *z, const real *target, const real *threshold,
                                               const real *upstream, const inner_loss_gradients *gradients,
                                               real *scratch);

#endif
