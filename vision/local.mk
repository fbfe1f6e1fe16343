bin_PROGRAMS += vision/comba-vision
vision_comba_vision_SOURCES =
vision_comba_vision_LDADD = lib/libprogram.la
