# Drivers are shell and awk and run from the source tree; the smoke test trains one step of two rows.
smoke_test = experiments/smoke.sh
TESTS += $(smoke_test)
EXTRA_DIST += $(smoke_test) \
	experiments/README.md \
	experiments/ablation/rows.tsv \
	experiments/ablation/run \
	experiments/language.sh \
	experiments/merge_patch.awk \
	experiments/plot.gp \
	experiments/table.awk
