/* Every row of the operator table: the float32 variants against the oracle, the oracle against central differences. One
 * test an operator and mode; `op-bench test` and `op-bench grad` run the same for a person. */
#include <stdio.h>

#include "core/backend.h"
#include "op_check.h"
#include "testing.h"

/* All cases are run; the test fails with the first failure. */
static const char *check_row(int id) {
  static char first[OP_CASE_TEXT + 512];
  op_variant variant[OP_VARIANTS];
  const int variants = op_variants(variant);
  first[0] = 0;
  for (const comba_case *c = op_oracle.op[id]->cases; c->name; c++) {
    if (c->benchmark) continue;
    op_reference *reference = NULL;
    const char *failure = op_reference_create(&reference, id, c, NULL);
    for (int i = 0; i < variants && !failure; i++) failure = op_check_variant(reference, &variant[i]);
    if (failure && !first[0]) snprintf(first, sizeof first, "%s", failure);
    op_reference_free(reference);
  }
  return first[0] ? first : NULL;
}

START_TEST(variants_equal_oracle) {
  const char *failure = check_row(_i);
  ck_assert_msg(!failure, "%s", failure);
}
END_TEST

START_TEST(gradients_equal_central_differences) {
  for (const comba_case *c = op_oracle.op[_i]->cases; c->name; c++) {
    const char *failure = c->benchmark ? NULL : op_check_gradient(_i, c, op_check_coordinates());
    ck_assert_msg(!failure, "%s", failure);
  }
}
END_TEST

/* A row without cases would pass unseen. */
START_TEST(row_is_complete) {
  const comba_op *op = op_oracle.op[_i];
  int tests = 0;
  for (const comba_case *c = op->cases; c->name; c++) tests += !c->benchmark;
  ck_assert_msg(tests > 0, "%s has no test case", op->name);
  ck_assert(op->inputs >= 0 && op->inputs <= COMBA_MAX_INPUTS); /* a constant has none */
  ck_assert(op->outputs >= 1 && op->outputs <= COMBA_MAX_OUTPUTS);
  ck_assert_ptr_nonnull(op->formula);
}
END_TEST

/* The operator's name as `list.h` has it: the enumerators and the table are in one order. */
START_TEST(table_is_in_order) {
  static const char *const names[] = {
#define COMBA_LIST_OP(name) #name,
#include "ops/list.h"
#undef COMBA_LIST_OP
  };
  op_variant variant[OP_VARIANTS];
  const int variants = op_variants(variant);
  ck_assert_str_eq(op_oracle.op[_i]->name, names[_i]);
  for (int i = 0; i < variants; i++) ck_assert_str_eq(variant[i].op[_i]->name, names[_i]);
}
END_TEST

static TCase *over_all_rows(const char *name, const TTest *test) {
  TCase *group = tcase_create(name);
  tcase_set_timeout(group, 0);
  tcase_add_loop_test(group, test, 0, COMBA_OP_COUNT);
  return group;
}

int main(void) {
  Suite *suite = suite_create("operators");
  suite_add_tcase(suite, over_all_rows("table", table_is_in_order));
  suite_add_tcase(suite, over_all_rows("rows", row_is_complete));
  suite_add_tcase(suite, over_all_rows("variants", variants_equal_oracle));
  suite_add_tcase(suite, over_all_rows("gradients", gradients_equal_central_differences));
  return run_suite(suite);
}
