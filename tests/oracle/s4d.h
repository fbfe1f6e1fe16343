/* S4D as a convolution with its kernel in closed form. */
#ifndef COMBA_TESTS_S4D_H
#define COMBA_TESTS_S4D_H

#include "language_model.h"

extern const oracle_family oracle_s4d; /* without a config: the sizes are those of the weights */

#endif
