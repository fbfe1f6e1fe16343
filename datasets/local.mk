EXTRA_DIST += datasets/get

noinst_PROGRAMS += datasets/make-shapes
datasets_make_shapes_LDADD = lib/libprogram.la
