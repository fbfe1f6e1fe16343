# Drivers are shell and awk and run from the source tree; the smoke test trains one step of a few rows.
smoke_test = experiments/smoke.sh
TESTS += $(smoke_test)
EXTRA_DIST += $(smoke_test) \
	experiments/README.md \
	experiments/ablation/rows.tsv \
	experiments/ablation/run \
	experiments/driver.sh \
	experiments/language.sh \
	experiments/merge_patch.awk \
	experiments/mixers/plot.gp \
	experiments/mixers/rows.tsv \
	experiments/mixers/run \
	experiments/mixers/table.awk \
	experiments/plot.gp \
	experiments/recall/plot.gp \
	experiments/recall/rows.tsv \
	experiments/recall/run \
	experiments/recall/table.awk \
	experiments/table.awk
