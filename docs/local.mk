documentation =
EXTRA_DIST += $(documentation)
