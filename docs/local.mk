documentation = \
	docs/delta_rule.md \
	docs/design.md \
	docs/formats.md
EXTRA_DIST += $(documentation)
