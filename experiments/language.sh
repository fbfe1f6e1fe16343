# shellcheck shell=sh disable=SC2154 # variables of the script that sources this
# Drivers that train language models on one file and compare their losses in pairs, row against baseline. The script that
# sources this sets `here` and `presets` (lines for --help); its use_preset sets seeds, steps, batch_size, sequence_length,
# recipe (options of `comba-lm train`) and, for a preset that brings its data, data and validation_data.
. "$here/../driver.sh"

data='' validation_data=''

about() {
  cat <<END
usage: experiments/$experiment/run PRESET [option...]
       experiments/$experiment/run PRESET --table

Trains every row of experiments/$experiment/rows.tsv with every seed and writes results.md, results.csv and results.svg.

presets:
$presets

  --data FILE               train on this file
  --validation-data FILE    evaluate on this file
END
}

own_option() {
  case $1 in
    --data) data=$2 ;;
    --validation-data) validation_data=$2 ;;
    *) return 1 ;;
  esac
}

prepare() {
  find_program comba-lm lm COMBA_LM
  lm=$found
  for file in "$data" "$validation_data"; do
    [ -r "$file" ] || refuse "cannot read '$file': datasets/get, or --data and --validation-data"
  done
}

train_row() {
  folder=$top/$1/seed-$2
  config=$(patches "$1" | merged) || return 1
  arguments="train --config $folder/config.json --data $data --validation-data $validation_data --output $folder/run"
  arguments="$arguments --steps $steps --batch-size $batch_size --sequence-length $sequence_length $recipe --seed $2"
  train comba-lm "$lm" "$folder" "$1" "$2" $((steps * batch_size * sequence_length))
}

# Loss and gradient norm of the first three steps; equal ones mean that two rows are the same network.
opening() {
  sed -n 's/.*"loss": *\([^,]*\),.*"gradient_norm": *\([^,]*\),.*/\1, \2/p' "$1" |
    awk 'NR <= 3 { printf "%s%s", (NR > 1 ? ", " : ""), $0 }'
}

metrics() {
  printf '    "loss": %s,\n    "opening": [%s]\n' "$(json_value "$1/train.json" loss)" "$(opening "$1/run/log.jsonl")"
}

tabulate() {
  find "$top" -name result.json | sort | while read -r file; do
    printf '%s\t%s\t%s\t%s\t%s\n' "$(json_value "$file" row)" "$(json_value "$file" seed)" \
      "$(json_value "$file" parameters)" "$(json_value "$file" loss)" "$(json_value "$file" opening)"
  done >"$top/runs.tsv"
  awk -F '\t' -v title="$experiment, $preset" -v markdown="$top/results.md" -v csv="$top/results.csv" \
    -v plot="$top/results.dat" -v rows="$here/rows.tsv" -f "$here/../table.awk" "$top/runs.tsv"
  draw "$here/../plot.gp"
  rm -f "$top/runs.tsv"
  say "$top/results.md"
}
