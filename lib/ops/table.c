/* The rows of this variant, indexed by comba_op_id. */
#include "core/op.h"

#define COMBA_LIST_OP(name) extern const comba_op COMBA_VARIANT(comba_op_##name);
#include "ops/list.h"
#undef COMBA_LIST_OP

extern const comba_op *const COMBA_VARIANT(comba_op_table)[];
const comba_op *const COMBA_VARIANT(comba_op_table)[] = {
#define COMBA_LIST_OP(name) &COMBA_VARIANT(comba_op_##name),
#include "ops/list.h"
#undef COMBA_LIST_OP
};
