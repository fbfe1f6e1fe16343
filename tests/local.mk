# Suites of Check, shell tests, and the operator bench. A suite of one file is one word here: tests/test_NAME is made of
# tests/test_NAME.c. Without Check `make check` runs the shell tests alone and says so.
suites = \
	tests/test_core \
	tests/test_delta_rule \
	tests/test_file \
	tests/test_operators \
	tests/test_safetensors

shell_tests =

LDADD = lib/libkernels-oracle.la lib/libcomba-all.la $(CHECK_LIBS)

if HAVE_CHECK
check_PROGRAMS += $(suites)
TESTS += $(suites)
else
EXTRA_PROGRAMS = $(suites)
check-local:
	@echo "make check: the unit tests are left out: Check is not installed (Debian package check)"
endif

TESTS += $(shell_tests)
TEST_EXTENSIONS = .sh
EXTRA_DIST += $(shell_tests) tests/installed.sh tests/testing.h

tests_test_delta_rule_SOURCES = tests/test_delta_rule.c tests/oracle/recurrence.c tests/oracle/recurrence.h

operator_check_sources = tests/op_case.c tests/op_case.h tests/op_check.c tests/op_check.h \
	tests/op_instance.c tests/op_instance.h
tests_test_operators_SOURCES = tests/test_operators.c $(operator_check_sources)

check_PROGRAMS += tests/op-bench
tests_op_bench_SOURCES = tests/op_bench.c tests/op_perf.c tests/op_perf.h $(operator_check_sources)
tests_op_bench_LDADD = lib/libkernels-oracle.la lib/libcomba-all.la

bench: tests/op-bench$(EXEEXT)
	tests/op-bench$(EXEEXT) perf
