documentation = \
	docs/delta_rule.md \
	docs/design.md \
	docs/diagonal_decay.md \
	docs/formats.md \
	docs/memory.md \
	docs/memory_mlp.md \
	docs/mixers/delta_net.md \
	docs/mixers/gated_deltanet.md \
	docs/mixers/gla.md \
	docs/mixers/hgrn2.md \
	docs/mixers/kda.md \
	docs/mixers/linear_attn.md \
	docs/mixers/mamba2.md \
	docs/mixers/mesa_net.md \
	docs/mixers/meta_la.md \
	docs/mixers/miras.md \
	docs/mixers/mlstm.md \
	docs/mixers/retnet.md \
	docs/mixers/rwkv7.md \
	docs/mixers/s4d.md \
	docs/mixers/simple_gla.md \
	docs/mixers/titans.md \
	docs/mixers/transformer.md \
	docs/mixers/ttt_linear.md \
	docs/mixers/ttt_mlp.md \
	docs/scalar_decay.md
EXTRA_DIST += $(documentation)
