EXTRA_DIST += datasets/get

noinst_PROGRAMS += datasets/make-recall datasets/make-shapes
datasets_make_recall_LDADD = lib/libprogram.la
datasets_make_shapes_LDADD = lib/libprogram.la
