# Suites of Check, shell tests, and the operator bench. A suite of one file is one word here: tests/test_NAME is made of
# tests/test_NAME.c. Without Check `make check` runs the shell tests alone and says so.
suites = \
	tests/test_attention \
	tests/test_config \
	tests/test_core \
	tests/test_data \
	tests/test_decoder \
	tests/test_delta_rule \
	tests/test_device_decoder \
	tests/test_diagonal_decay \
	tests/test_file \
	tests/test_gemm \
	tests/test_graph \
	tests/test_images \
	tests/test_lanes \
	tests/test_mixers \
	tests/test_model \
	tests/test_operators \
	tests/test_parity \
	tests/test_recompute \
	tests/test_recurrences \
	tests/test_rwkv7 \
	tests/test_safetensors \
	tests/test_scalar_decay \
	tests/test_tokens \
	tests/test_trainer \
	tests/test_training \
	tests/test_vision_model

shell_tests = tests/cli.sh tests/convert.sh tests/hostile.sh
include tests/fuzz/local.mk
check_PROGRAMS += tests/json-has
tests_json_has_SOURCES = tests/json_has.c
tests_json_has_LDADD = $(JANSSON_LIBS)

# Suites of files.
scratch_folder = tests/scratch_folder.c tests/scratch_folder.h
tests_test_data_SOURCES = tests/test_data.c $(scratch_folder)
tests_test_tokens_SOURCES = tests/test_tokens.c $(scratch_folder)

# Suites of engines with a state.
scan_case = tests/scan_case.c tests/scan_case.h
tests_test_delta_rule_SOURCES = tests/test_delta_rule.c $(scan_case)
tests_test_diagonal_decay_SOURCES = tests/test_diagonal_decay.c $(scan_case)
tests_test_scalar_decay_SOURCES = tests/test_scalar_decay.c $(scan_case)

# Suites of whole models.
model_case = tests/model_case.c tests/model_case.h
tests_test_decoder_SOURCES = tests/test_decoder.c $(model_case)
tests_test_device_decoder_SOURCES = tests/test_device_decoder.c $(model_case)
tests_test_mixers_SOURCES = tests/test_mixers.c $(model_case)
tests_test_model_SOURCES = tests/test_model.c $(model_case)
tests_test_recompute_SOURCES = tests/test_recompute.c $(model_case)
tests_test_recurrences_SOURCES = tests/test_recurrences.c $(model_case)
tests_test_rwkv7_SOURCES = tests/test_rwkv7.c $(model_case)
tests_test_trainer_SOURCES = tests/test_trainer.c $(model_case) $(scratch_folder)
tests_test_trainer_LDADD = lib/libprogram.la $(LDADD)
tests_test_training_SOURCES = tests/test_training.c $(model_case)
tests_test_vision_model_SOURCES = tests/test_vision_model.c $(model_case)

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
EXTRA_DIST += $(shell_tests) tests/installed.sh tests/pytorch.py \
	tests/gpu/run \
	tests/gpu/failures \
	tests/gpu/comba-340m.json \
	tests/gpu/gated_deltanet-340m.json \
	tests/gpu/transformer-340m.json \
	tests/gpu/vision_pytorch.py

# What the suites and the bench share.
check_LTLIBRARIES += tests/libtesting.la
tests_libtesting_la_SOURCES = \
	tests/op_case.c \
	tests/op_case.h \
	tests/op_check.c \
	tests/op_check.h \
	tests/op_device.c \
	tests/op_instance.c \
	tests/op_instance.h \
	tests/oracle/comba_model.c \
	tests/oracle/comba_model.h \
	tests/oracle/diagonal_recurrence.c \
	tests/oracle/diagonal_recurrence.h \
	tests/oracle/kda.c \
	tests/oracle/kda.h \
	tests/oracle/language_model.c \
	tests/oracle/language_model.h \
	tests/oracle/linear_family.c \
	tests/oracle/linear_family.h \
	tests/oracle/memory_family.c \
	tests/oracle/memory_family.h \
	tests/oracle/mamba2.c \
	tests/oracle/mamba2.h \
	tests/oracle/mesa_net.c \
	tests/oracle/mesa_net.h \
	tests/oracle/meta_la.c \
	tests/oracle/meta_la.h \
	tests/oracle/mlstm.c \
	tests/oracle/mlstm.h \
	tests/oracle/recurrence.c \
	tests/oracle/recurrence.h \
	tests/oracle/rwkv7.c \
	tests/oracle/rwkv7.h \
	tests/oracle/s4d.c \
	tests/oracle/s4d.h \
	tests/oracle/scalar_recurrence.c \
	tests/oracle/scalar_recurrence.h \
	tests/oracle/softmax_attention.c \
	tests/oracle/softmax_attention.h \
	tests/oracle/ttt_mlp.c \
	tests/oracle/ttt_mlp.h \
	tests/oracle/two_layers.c \
	tests/oracle/two_layers.h \
	tests/testing.h
tests_libtesting_la_LIBADD = lib/libkernels-oracle.la lib/libcomba-all.la

LDADD = tests/libtesting.la $(CHECK_LIBS)

check_PROGRAMS += tests/op-bench
tests_op_bench_SOURCES = tests/op_bench.c tests/op_perf.c tests/op_perf.h
tests_op_bench_LDADD = tests/libtesting.la

if CUDA
check_PROGRAMS += tests/product-bench
tests_product_bench_SOURCES = tests/product_bench.c tests/op_perf.c tests/op_perf.h
tests_product_bench_LDADD = tests/libtesting.la
endif

check_PROGRAMS += tests/step-bench
tests_step_bench_SOURCES = tests/step_bench.c tests/op_perf.c tests/op_perf.h lm/presets.c vision/presets.c
tests_step_bench_LDADD = lib/libprogram.la tests/libtesting.la

check_PROGRAMS += tests/mixer-bench
tests_mixer_bench_SOURCES = tests/mixer_bench.c tests/op_perf.c tests/op_perf.h
tests_mixer_bench_LDADD = tests/libtesting.la

bench: tests/op-bench$(EXEEXT) tests/mixer-bench$(EXEEXT) tests/step-bench$(EXEEXT)
	tests/op-bench$(EXEEXT) perf
	tests/mixer-bench$(EXEEXT)
	tests/step-bench$(EXEEXT)
