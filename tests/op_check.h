/* What must hold for every case of every row. Each check returns NULL, or one message that names operator, case, variant,
 * tensor, index, the values and the tolerance; it is valid until the next check. */
#ifndef COMBA_TESTS_OP_CHECK_H
#define COMBA_TESTS_OP_CHECK_H

#include "op_case.h"

/* A case computed by the oracle, against which the variants are checked. With `exact`, the case as it is, inputs are rounded to bfloat16
 * first, for variants that see them so; `exact` must outlive it. */
typedef struct op_reference op_reference;
const char *op_reference_create(op_reference **reference, int id, const comba_case *c, const op_reference *exact);
void op_reference_free(op_reference *reference);

/* A variant against the oracle, forward and backward:
 *   - equal output shapes; values within the tolerance of the case, all finite
 *   - equal bits for 1 and 3 threads, for two runs, and with nothing saved
 *   - gradients are added to where asked; do not depend on which other gradients are wanted; an output's gradient may be
 *     absent
 *   - backward reads only what the row declares; inputs and output gradients are left as they were; nothing is written
 *     outside an operand; an absent input that is needed is refused */
const char *op_check_variant(const op_reference *reference, const op_variant *variant);

/* The oracle's backward against central differences of its forward, under a random projection of the outputs: for each
 * input along one random direction of the whole tensor, and for up to `coordinates` single elements. */
const char *op_check_gradient(int id, const comba_case *c, int coordinates);
/* 24, or the environment variable COMBA_TEST_COORDINATES. */
int op_check_coordinates(void);

#endif
