documentation = \
	docs/delta_rule.md \
	docs/design.md \
	docs/diagonal_decay.md \
	docs/formats.md \
	docs/mixers/delta_net.md \
	docs/mixers/gated_deltanet.md \
	docs/mixers/mlstm.md \
	docs/scalar_decay.md
EXTRA_DIST += $(documentation)
