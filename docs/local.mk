documentation = \
	docs/curves/fashion-mnist.svg \
	docs/curves/imagenette.svg \
	docs/curves/tinyshakespeare.svg \
	docs/cuda.md \
	docs/delta_rule.md \
	docs/design.md \
	docs/diagonal_decay.md \
	docs/formats.md \
	docs/memory.md \
	docs/memory_mlp.md \
	docs/mixers/comba.md \
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
	docs/performance.md \
	docs/results/ablation-tiny.csv \
	docs/results/ablation-tiny.md \
	docs/results/ablation-tiny.svg \
	docs/results/mixers-fashion-mnist.csv \
	docs/results/mixers-fashion-mnist.md \
	docs/results/mixers-fashion-mnist.svg \
	docs/results/mixers-tiny.csv \
	docs/results/mixers-tiny.md \
	docs/results/mixers-tiny.svg \
	docs/results/recall-tiny.md \
	docs/scalar_decay.md
EXTRA_DIST += $(documentation)

# What is installed for man and bash, printed by the programs from their option tables.
man_MANS = docs/comba-lm.1 docs/comba-vision.1
bashcompletiondir = $(datadir)/bash-completion/completions
bashcompletion_DATA = docs/completion/comba-lm docs/completion/comba-vision
CLEANFILES += $(man_MANS) $(bashcompletion_DATA)

docs/comba-lm.1 docs/completion/comba-lm: lm/comba-lm$(EXEEXT)
docs/comba-vision.1 docs/completion/comba-vision: vision/comba-vision$(EXEEXT)
docs/comba-lm.1:
	$(AM_V_GEN)$(MKDIR_P) $(@D) && lm/comba-lm --manual >$@.new && mv $@.new $@
docs/comba-vision.1:
	$(AM_V_GEN)$(MKDIR_P) $(@D) && vision/comba-vision --manual >$@.new && mv $@.new $@
docs/completion/comba-lm:
	$(AM_V_GEN)$(MKDIR_P) $(@D) && lm/comba-lm --completion >$@.new && mv $@.new $@
docs/completion/comba-vision:
	$(AM_V_GEN)$(MKDIR_P) $(@D) && vision/comba-vision --completion >$@.new && mv $@.new $@
