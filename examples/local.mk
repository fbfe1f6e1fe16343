# The examples use the public interface alone, so they link with the shared library, whose other symbols are hidden.
examples = examples/classify examples/decode examples/mixer
noinst_PROGRAMS += $(examples)
examples_classify_LDADD = lib/libcomba.la $(LIBM)
examples_decode_LDADD = lib/libcomba.la
examples_mixer_LDADD = lib/libcomba.la
