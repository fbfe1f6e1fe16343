bin_PROGRAMS += lm/comba-lm
lm_comba_lm_SOURCES = \
	lm/convert.c \
	lm/convert.h \
	lm/convert_mamba_ssm.c \
	lm/convert_rwkv.c \
	lm/convert_ttt.c \
	lm/eval.c \
	lm/evaluate.c \
	lm/evaluate.h \
	lm/forward.c \
	lm/generate.c \
	lm/lm.h \
	lm/main.c \
	lm/presets.c \
	lm/train.c
lm_comba_lm_LDADD = lib/libprogram.la
