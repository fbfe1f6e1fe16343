/* y = x, from float32 to the type of activations: see comba_graph_append */
#include "ops/conversion.h"

const comba_op COMBA_VARIANT(comba_op_narrow) = {
    .name = "narrow",
    .formula = "y = x, in the type of activations",
    .inputs = 1,
    .outputs = 1,
    .input_class = {COMBA_GATE},
    .output_class = {COMBA_ACTIVATION},
    .infer = conversion_infer,
    .forward = conversion_forward,
    .backward = conversion_backward,
    .cases = conversion_cases,
};
