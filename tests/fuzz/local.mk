# Fuzz targets for clang's libFuzzer: `make fuzz FUZZ_SECONDS=3600` runs each so long. Whatever the compiler of this build is, the
# readers of files are compiled once more by clang with coverage and sanitizers; what they call is linked as it is.
fuzz_targets = cifar config idx picture safetensors split tokens
FUZZ_SECONDS = 10

EXTRA_DIST += \
	tests/fuzz/cifar.c \
	tests/fuzz/config.c \
	tests/fuzz/dataset.h \
	tests/fuzz/fuzz.h \
	tests/fuzz/idx.c \
	tests/fuzz/picture.c \
	tests/fuzz/safetensors.c \
	tests/fuzz/split.c \
	tests/fuzz/tokens.c

if FUZZING
check_PROGRAMS += tests/fuzz/seeds
tests_fuzz_seeds_LDADD = lib/libcomba-all.la

fuzz_compile = $(FUZZ_CC) $(DEFS) $(DEFAULT_INCLUDES) $(AM_CPPFLAGS) $(CPPFLAGS) -std=gnu11 -O1 -g \
	-fsanitize=address,undefined -fno-sanitize-recover=undefined
fuzz_readers = $(srcdir)/lib/core/file.c $(srcdir)/lib/core/status.c $(srcdir)/lib/data/*.c $(srcdir)/lib/model/config.c \
	$(srcdir)/lib/model/field.c $(srcdir)/lib/model/json.c $(srcdir)/lib/model/schema.c $(srcdir)/lib/model/safetensors*.c

tests/fuzz/readers.a: lib/libcomba-all.la
	$(AM_V_GEN)rm -rf tests/fuzz/readers $@ && $(MKDIR_P) tests/fuzz/readers && \
	for source in $(fuzz_readers); do \
	  $(fuzz_compile) -fsanitize=fuzzer-no-link -c $$source -o tests/fuzz/readers/`basename $$source .c`.o || exit 1; \
	done && $(AR) rc $@ tests/fuzz/readers/*.o

# Linked without libtool, which would hand clang the -fopenmp that the library was made with by another compiler, and so ask for
# clang's own OpenMP library. A target runs in an empty folder. Its corpus grows in tests/fuzz/corpus/ and is used again.
fuzz: tests/fuzz/readers.a tests/fuzz/seeds$(EXEEXT)
	@cd tests/fuzz && rm -rf seed run && ./seeds seed
	@for target in $(fuzz_targets); do \
	  $(fuzz_compile) -fsanitize=fuzzer -o tests/fuzz/$$target $(srcdir)/tests/fuzz/$$target.c tests/fuzz/readers.a \
	    lib/.libs/libcomba-all.a $(CUDA_LIBS) $(ONEDNN_LIBS) $(BLAS_LIBS) $(JANSSON_LIBS) $(PNG_LIBS) $(JPEG_LIBS) \
	    -lgomp -lm || exit 1; \
	  $(MKDIR_P) tests/fuzz/run/$$target tests/fuzz/corpus/$$target; \
	  (cd tests/fuzz/run/$$target && ../../$$target -max_total_time=$(FUZZ_SECONDS) -timeout=60 -rss_limit_mb=2048 \
	    -print_final_stats=1 -artifact_prefix=../../found-$$target- ../../corpus/$$target ../../seed/$$target) \
	    >tests/fuzz/$$target.log 2>&1 || { tail -n 60 tests/fuzz/$$target.log; exit 1; }; \
	  echo "fuzz: $$target: `sed -n 's/^stat::number_of_executed_units: *//p' tests/fuzz/$$target.log` inputs, nothing found"; \
	done

clean-local:
	cd tests/fuzz && rm -rf readers readers.a seed run corpus $(fuzz_targets) *.log
else
EXTRA_DIST += tests/fuzz/seeds.c

fuzz:
	@echo "make fuzz: skipped: configure without --enable-fuzzing, or without clang and its libFuzzer"
endif

.PHONY: fuzz
