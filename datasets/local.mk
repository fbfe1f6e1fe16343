EXTRA_DIST += datasets/get
