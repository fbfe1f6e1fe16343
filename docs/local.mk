documentation = \
	docs/delta_rule.md \
	docs/formats.md
EXTRA_DIST += $(documentation)
