bin_PROGRAMS += lm/comba-lm
lm_comba_lm_SOURCES =
lm_comba_lm_LDADD = lib/libprogram.la
