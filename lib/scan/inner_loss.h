/* The losses that memories descend while they read a sequence, by the error of what they return for a key: row z (V) of a
 * memory against its target row t (V). One table, for memories of every form: what they need is n = d loss / dz, and the
 * way back through n, a second derivative. */
#ifndef COMBA_SCAN_INNER_LOSS_H
#define COMBA_SCAN_INNER_LOSS_H

#include "ops/ops.h"

/* A loss and the parameters of one head that it reads. */
typedef struct inner_loss {
  comba_inner_loss_attributes attributes; /* with its defaults filled in */
  int64_t V;
  const real *weight, *bias; /* (V) of COMBA_LOSS_LAYER_NORM, else NULL */
} inner_loss;

/* With the head's parameters, or NULL. */
inner_loss COMBA_VARIANT(comba_inner_loss_of)(const comba_inner_loss_attributes *attributes, int64_t V,
                                              const real *weight, const real *bias);

/* COMBA_ERROR_ARGUMENT where the attributes are out of range; `op` for the message. */
comba_status COMBA_VARIANT(comba_inner_loss_check)(const comba_inner_loss_attributes *attributes, const char *op);

/* Whether the loss reads weight and bias; a threshold a row. */
static inline bool inner_loss_normalizes(comba_loss kind) {
  return kind == COMBA_LOSS_LAYER_NORM;
}
static inline bool inner_loss_has_threshold(comba_loss kind) {
  return kind >= COMBA_LOSS_HUBER;
}

/* gradient (rows,V) = d loss / dz of z (rows,V) against target (rows,V); threshold (rows) or NULL. */
void COMBA_VARIANT(comba_inner_loss_forward)(const inner_loss *loss, int64_t rows, const real *z, const real *target,
                                             const real *threshold, real *gradient);

/* What backward gives: dz and dtarget (rows,V) are overwritten, the others added to, or NULL where not wanted. */
typedef struct inner_loss_gradients {
  real *dz, *dtarget;    /* always wanted */
  real *dthreshold;      /* (rows) */
  real *dweight, *dbias; /* (V) */
} inner_loss_gradients;

/* From upstream (rows,V), the gradient of what forward wrote. No two arrays overlap. */
void COMBA_VARIANT(comba_inner_loss_backward)(const inner_loss *loss, int64_t rows, const real *z, const real *target,
                                              const real *threshold, const real *upstream,
                                              const inner_loss_gradients *gradients);

#endif
