/* y = x, from the type of activations to float32: see comba_graph_append */
#include "ops/conversion.h"

const comba_op COMBA_VARIANT(comba_op_widen) = {
    .name = "widen",
    .formula = "y = x, in float32",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION},
    .output_class = {COMBA_GATE},
    .infer = conversion_infer,
    .forward = conversion_forward,
    .backward = conversion_backward,
    .cases = conversion_cases,
};
