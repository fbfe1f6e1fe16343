bin_PROGRAMS += vision/comba-vision
vision_comba_vision_SOURCES = \
	vision/eval.c \
	vision/evaluate.c \
	vision/evaluate.h \
	vision/forward.c \
	vision/main.c \
	vision/predict.c \
	vision/presets.c \
	vision/train.c \
	vision/vision.h
vision_comba_vision_LDADD = lib/libprogram.la
