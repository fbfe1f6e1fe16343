# shellcheck shell=sh disable=SC2154 # variables of the script that sources this
# What the drivers of language experiments share, sourced by experiments/NAME/run. That script sets `here` (its folder) and
# `presets` (lines for --help); its function use_preset sets seeds, steps, batch_size, sequence_length, recipe (options of
# `comba-lm train`) and, for a preset that brings its data, data and validation_data. The rows are in $here/rows.tsv.

experiment=$(basename "$here")
root=$(cd "$here/../.." && pwd)

usage() {
  cat <<END
usage: experiments/$experiment/run PRESET [option...]
       experiments/$experiment/run PRESET --table

Trains every row of experiments/$experiment/rows.tsv with every seed and writes results.md, results.csv and results.svg.
Run it again after an interruption: finished runs are kept, a run that was cut goes on from its last checkpoint.

presets:
$presets

  --rows "A B"              only these rows
  --seeds "1 2"             only these seeds
  --steps N                 another length, for a trial (give it a results folder of its own)
  --data FILE               train on this file
  --validation-data FILE    evaluate on this file
  --threads N               threads of a run (default: all cores); results do not depend on it
  --results DIR             where results go (default: results)
  --table                   train nothing, only write the tables and the plot

The program is \$COMBA_LM, else build/lm/comba-lm, else comba-lm from the PATH.
END
}

say() {
  echo "$experiment: $*" >&2
}

# Usage errors: exit code 2, like the programs.
refuse() {
  say "$*"
  exit 2
}

# cell ROW COLUMN: one cell of rows.tsv, by the column's name.
cell() {
  awk -F '\t' -v row="$1" -v column="$2" '
    NR == 1 { for (i = 1; i <= NF; i++) if ($i == column) at = i }
    $2 == row { print $at }' "$here/rows.tsv"
}

# patches ROW: the JSON objects that make its config, the baseline's first.
patches() {
  if [ "$(cell "$1" baseline)" != - ]; then patches "$(cell "$1" baseline)"; fi
  cell "$1" config
  cell "$1" "$preset"
}

# json_value FILE KEY: the number, string (without its quotes) or array of the first line that has KEY.
json_value() {
  sed -n -E "s/.*\"$2\": *(\"[^\"]*\"|\[[^]]*\]|[-+0-9.eE]*).*/\1/p" "$1" | sed -e 's/^"\(.*\)"$/\1/' -e 1q
}

# opening LOG: loss and gradient norm of the first three steps; equal ones mean that two rows are the same network.
opening() {
  sed -n 's/.*"loss": *\([^,]*\),.*"gradient_norm": *\([^,]*\),.*/\1, \2/p' "$1" |
    awk 'NR <= 3 { printf "%s%s", (NR > 1 ? ", " : ""), $0 }'
}

# write_result FOLDER ROW SEED: result.json of the finished run FOLDER/run.
write_result() {
  cat >"$1/result.json.new" <<END
{
  "experiment": "$experiment",
  "preset": "$preset",
  "row": "$2",
  "seed": $3,
  "command": "comba-lm $arguments",
  "commit": "$commit",
  "config": $config,
  "parameters": $(json_value "$1/info.json" parameters),
  "tokens": $((steps * batch_size * sequence_length)),
  "seconds": $(awk '{ s += $1 } END { printf "%.1f", s }' "$1/seconds"),
  "device": "$(json_value "$1/info.json" backend); $(json_value "$1/info.json" products)",
  "metrics": {
    "loss": $(json_value "$1/train.json" loss),
    "opening": [$(opening "$1/run/log.jsonl")]
  }
}
END
  mv "$1/result.json.new" "$1/result.json"
}

# train_row ROW SEED: trains unless there is a result; returns 1 if the row cannot be trained.
train_row() {
  folder=$results/$experiment/$preset/$1/seed-$2
  config=$(patches "$1" | awk -f "$here/../merge_patch.awk") || return 1
  arguments="train --config $folder/config.json --data $data --validation-data $validation_data --output $folder/run"
  arguments="$arguments --steps $steps --batch-size $batch_size --sequence-length $sequence_length $recipe --seed $2"
  if [ -f "$folder/result.json" ]; then
    if grep -q -x -F "  \"config\": $config," "$folder/result.json" &&
      grep -q -x -F "  \"command\": \"comba-lm $arguments\"," "$folder/result.json"; then return 0; fi
    say "$1: $folder/result.json is of another config or recipe: move it away or choose another --results"
    return 1
  fi
  mkdir -p "$folder"
  echo "$config" >"$folder/config.json"
  # a field without effect would make another row of it: the warning counts as a refusal
  if ! "$lm" info --config "$folder/config.json" --json >"$folder/info.json" 2>"$folder/messages" ||
    [ -s "$folder/messages" ]; then
    say "$1: skipped: $(head -n 1 "$folder/messages")"
    return 1
  fi
  say "$1, seed $2"
  # in the background: wait ends when a signal comes, which the trap passes on; then the run is left to end in order
  # shellcheck disable=SC2086 # arguments are words
  "$lm" $arguments --evaluate-every "$steps" --resume --threads "$threads" --json >"$folder/train.json" &
  child=$!
  code=0
  wait $child || code=$?
  while kill -0 $child 2>/dev/null; do
    code=0
    wait $child || code=$?
  done
  child=
  json_value "$folder/train.json" seconds >>"$folder/seconds"
  if [ -n "$stopped" ]; then exit 1; fi
  if [ $code != 0 ]; then
    say "$1: comba-lm ended with code $code"
    return 1
  fi
  # a signal that reached the program alone
  grep -q '"finished":true' "$folder/train.json" || exit 1
  write_result "$folder" "$1" "$2"
}

stop() {
  stopped=1
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || :; else exit 1; fi
}

# tabulate: results.md, results.csv and the plot, from rows.tsv and the result.json files alone.
tabulate() {
  top=$results/$experiment/$preset
  find "$top" -name result.json | sort | while read -r file; do
    printf '%s\t%s\t%s\t%s\t%s\n' "$(json_value "$file" row)" "$(json_value "$file" seed)" \
      "$(json_value "$file" parameters)" "$(json_value "$file" loss)" "$(json_value "$file" opening)"
  done >"$top/runs.tsv"
  awk -F '\t' -v title="$experiment, $preset" -v markdown="$top/results.md" -v csv="$top/results.csv" \
    -v plot="$top/results.dat" -v rows="$here/rows.tsv" -f "$here/../table.awk" "$top/runs.tsv"
  if command -v gnuplot >/dev/null && [ -s "$top/results.dat" ]; then
    gnuplot -e "data = '$top/results.dat'; picture = '$top/results.svg'" "$here/../plot.gp" ||
      say "no plot: gnuplot failed"
  else
    say "no plot: gnuplot is not installed or there is nothing to draw"
  fi
  rm -f "$top/runs.tsv"
  say "$top/results.md"
}

# ---- The command line ----

case ${1-} in
  --help | -h)
    usage
    exit
    ;;
  '') refuse "which preset? experiments/$experiment/run --help" ;;
esac
preset=$1
shift
rows=$(awk -F '\t' 'NR > 1 { print $2 }' "$here/rows.tsv")
data='' validation_data='' threads=0 results=results table_only=
use_preset "$preset" || refuse "no preset $preset; experiments/$experiment/run --help lists them"
while [ $# -gt 0 ]; do
  option=$1
  if [ "$option" != --table ]; then
    [ $# -ge 2 ] || refuse "$option needs a value"
    shift
  fi
  case $option in
    --rows) rows=$1 ;;
    --seeds) seeds=$1 ;;
    --steps) steps=$1 ;;
    --data) data=$1 ;;
    --validation-data) validation_data=$1 ;;
    --threads) threads=$1 ;;
    --results) results=$1 ;;
    --table) table_only=1 ;;
    *) refuse "no option $option; experiments/$experiment/run --help lists them" ;;
  esac
  shift
done
for row in $rows; do
  [ -n "$(cell "$row" block)" ] || refuse "no row $row in $here/rows.tsv"
done

if [ -n "$table_only" ]; then
  tabulate
  exit
fi

lm=${COMBA_LM:-$root/build/lm/comba-lm}
[ -x "$lm" ] || lm=$(command -v comba-lm) || refuse "comba-lm is not built: ./bootstrap build, or set COMBA_LM"
for file in "$data" "$validation_data"; do
  [ -r "$file" ] || refuse "cannot read '$file': datasets/get, or --data and --validation-data"
done
[ "$threads" != 0 ] || threads=$(getconf _NPROCESSORS_ONLN)
commit=$(git -C "$root" describe --always --dirty 2>/dev/null) || commit=$("$lm" --version)

child='' stopped='' failed=''
trap stop HUP INT TERM
# seed by seed: an early stop leaves whole sets of paired runs
for seed in $seeds; do
  for row in $rows; do
    train_row "$row" "$seed" || case " $failed " in *" $row "*) ;; *) failed="$failed $row" ;; esac
  done
done
tabulate
if [ -n "$failed" ]; then
  say "not run:$failed"
  exit 1
fi
