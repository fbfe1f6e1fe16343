# Suites of Check, shell tests, and the operator bench. Without Check `make check` runs the shell tests alone and says so.
suite_libraries = lib/libkernels-oracle.la lib/libcomba-all.la $(CHECK_LIBS)
suites = tests/test_file tests/test_operators

if HAVE_CHECK
check_PROGRAMS += $(suites)
TESTS += $(suites)
else
EXTRA_PROGRAMS = $(suites)
check-local:
	@echo "make check: the unit tests are left out: Check is not installed (Debian package check)"
endif

tests_test_file_LDADD = $(suite_libraries)

operator_check_sources = tests/op_case.c tests/op_case.h tests/op_check.c tests/op_check.h \
	tests/op_instance.c tests/op_instance.h
tests_test_operators_SOURCES = tests/test_operators.c tests/testing.h $(operator_check_sources)
tests_test_operators_LDADD = $(suite_libraries)

check_PROGRAMS += tests/op-bench
tests_op_bench_SOURCES = tests/op_bench.c tests/op_perf.c tests/op_perf.h $(operator_check_sources)
tests_op_bench_LDADD = lib/libkernels-oracle.la lib/libcomba-all.la

bench: tests/op-bench$(EXEEXT)
	tests/op-bench$(EXEEXT) perf
