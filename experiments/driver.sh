# shellcheck shell=sh disable=SC2154 # variables of the script that sources this
# What all drivers share. experiments/NAME/run sets `here` (its folder), sources this, defines the functions below and calls
# drive "$@".
#
#   about            prints what --help says before the options: usage, what is trained, presets, options of its own
#   use_preset NAME  sets seeds, steps and what else a preset means; fails if there is none of that name
#   own_option O V   takes an option of its own; fails if it has no option O
#   prepare          programs and data, before anything is trained
#   train_row R S    trains row R of rows.tsv with seed S, by `train`; fails if the row cannot be trained
#   metrics FOLDER   prints the members of "metrics" in result.json of the run FOLDER/run, one a line
#   tabulate         writes the tables and the plot from the result.json files below $top

experiment=$(basename "$here")
root=$(cd "$here/../.." && pwd)

usage() {
  about
  cat <<END
  --rows "A B"              only these rows
  --seeds "1 2"             only these seeds
  --steps N                 another length, for a trial (give it a results folder of its own)
  --device cpu|cuda         where the programs compute (default: a GPU if there is one)
  --jobs N                  runs side by side, of different rows (default 1)
  --threads N               threads of a run (default: all cores over --jobs); results do not depend on it
  --results DIR             where results go (default: results)
  --table                   train nothing, only write the tables and the plot

Run it again after an interruption: finished runs are kept, a run that was cut goes on from its last checkpoint. Programs are
those of build/ (a variable such as \$COMBA_LM names another), else those on the PATH. \$COMBA_COMMIT is written into the results
as the commit, in place of what the program's --version says.
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

own_option() {
  return 1
}

# find_program NAME FOLDER VARIABLE: its path in $found.
find_program() {
  eval "found=\${$3:-\$root/build/\$2/\$1}"
  [ -x "$found" ] || found=$(command -v "$1") || refuse "$1 is not built: ./bootstrap build, or set $3"
}

# cell ROW COLUMN: one cell of rows.tsv, by the column's name; nothing where there is no such column.
cell() {
  awk -F '\t' -v row="$1" -v column="$2" '
    NR == 1 { for (i = 1; i <= NF; i++) if ($i == column) at = i }
    at && $2 == row { print $at }' "$here/rows.tsv"
}

# patches ROW: the JSON objects that make its config, the baseline's first.
patches() {
  if [ "$(cell "$1" baseline)" != - ]; then patches "$(cell "$1" baseline)"; fi
  cell "$1" config
  cell "$1" "$preset"
}

# merged: JSON objects, one a line, as one.
merged() {
  awk -f "$here/../merge_patch.awk"
}

# json_value FILE KEY: the number, string (without its quotes) or array of the first line that has KEY.
json_value() {
  sed -n -E "s/.*\"$2\": *(\"[^\"]*\"|\[[^]]*\]|[-+0-9.eE]*).*/\1/p" "$1" | sed -e 's/^"\(.*\)"$/\1/' -e 1q
}

# write_result PROGRAM FOLDER ROW SEED TOKENS: result.json of the finished run FOLDER/run.
write_result() {
  measured=$(metrics "$2") || return 1
  cat >"$2/result.json.new" <<END
{
  "experiment": "$experiment",
  "preset": "$preset",
  "row": "$3",
  "seed": $4,
  "command": "$1 $arguments",
  "commit": "$commit",
  "config": $config,
  "parameters": $(json_value "$2/info.json" parameters),
  "tokens": $5,
  "seconds": $(awk '{ s += $1 } END { printf "%.1f", s }' "$2/seconds"),
  "jobs": $jobs,
  "device": "$(json_value "$2/info.json" backend); $(json_value "$2/info.json" products)",
  "metrics": {
$measured
  }
}
END
  mv "$2/result.json.new" "$2/result.json"
}

# train PROGRAM PATH FOLDER ROW SEED TOKENS: trains $config with $arguments into FOLDER/run, unless FOLDER/result.json is there.
# PROGRAM is the name of the program at PATH, TOKENS how many it sees; fails if the run cannot be made.
train() {
  if [ -f "$3/result.json" ]; then
    if grep -q -x -F "  \"config\": $config," "$3/result.json" &&
      grep -q -x -F "  \"command\": \"$1 $arguments\"," "$3/result.json"; then return 0; fi
    say "$4: $3/result.json is of another config or recipe: move it away or choose another --results"
    return 1
  fi
  mkdir -p "$3"
  echo "$config" >"$3/config.json"
  # a field without effect would make another row of it: the warning counts as a refusal
  precision=$(printf %s "$arguments" | sed -n 's/.*\(--precision [a-z0-9]*\).*/\1/p') # the device's name has it
  # shellcheck disable=SC2086 # an option and its value, or nothing
  if ! "$2" info $on $precision --config "$3/config.json" --json >"$3/info.json" 2>"$3/messages" || [ -s "$3/messages" ]; then
    say "$4: skipped: $(head -n 1 "$3/messages")"
    return 1
  fi
  say "${3#"$top/"}"
  # in the background: wait ends when a signal comes, which the trap passes on; then the run is left to end in order
  # shellcheck disable=SC2086 # arguments are words
  "$2" $arguments $on --evaluate-every "$steps" --resume --threads "$threads" --json >"$3/train.json" &
  child=$!
  await $child
  child=
  json_value "$3/train.json" seconds >>"$3/seconds"
  if [ -n "$stopped" ]; then exit 1; fi
  if [ $code != 0 ]; then
    say "$4: $1 ended with code $code"
    return 1
  fi
  # a signal that reached the program alone
  grep -q '"finished":true' "$3/train.json" || exit 1
  write_result "$1" "$3" "$4" "$5" "$6"
}

# await PID: until it has ended, whatever signals come in between; its exit code in $code.
await() {
  code=0
  wait "$1" || code=$?
  while kill -0 "$1" 2>/dev/null; do
    code=0
    wait "$1" || code=$?
  done
}

stop() {
  stopped=1
  # shellcheck disable=SC2086 # of several jobs
  if [ -n "$child" ]; then kill -TERM $child 2>/dev/null || :; else exit 1; fi
}

# train_rows: all rows with all seeds; seed by seed, so that an early stop leaves whole sets of paired runs. Those that could not
# be trained in $failed.
train_rows() {
  for seed in $seeds; do
    for row in $rows; do
      train_row "$row" "$seed" || case " $failed " in *" $row "*) ;; *) failed="$failed $row" ;; esac
    done
  done
}

# train_side_by_side: the same by $jobs shells, each of which takes the next row that is free, with all of its seeds.
train_side_by_side() {
  taken=$(mktemp -d)
  all=$rows workers=
  while [ "$(echo "$workers" | wc -w)" -lt "$jobs" ]; do
    (
      trap stop HUP TERM
      for rows in $all; do
        if mkdir "$taken/$rows" 2>/dev/null; then train_rows; fi
      done
      echo "$failed" >>"$taken/failed"
    ) &
    workers="$workers $!"
    child=$workers
  done
  for worker in $workers; do
    await "$worker"
    [ $code = 0 ] || stopped=1
  done
  [ -n "$stopped" ] || failed=$(tr -d '\n' <"$taken/failed")
  rm -r "$taken"
  [ -z "$stopped" ] || exit 1
}

# draw SCRIPT: results.svg from results.dat.
draw() {
  if command -v gnuplot >/dev/null && [ -s "$top/results.dat" ]; then
    gnuplot -e "data = '$top/results.dat'; picture = '$top/results.svg'" "$1" || say "no plot: gnuplot failed"
  else
    say "no plot: gnuplot is not installed or there is nothing to draw"
  fi
}

drive() {
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
  threads=0 jobs=1 device='' results=results table_only=
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
      --device) device=$1 ;;
      --jobs) jobs=$1 ;;
      --threads) threads=$1 ;;
      --results) results=$1 ;;
      --table) table_only=1 ;;
      *) own_option "$option" "$1" || refuse "no option $option; experiments/$experiment/run --help lists them" ;;
    esac
    shift
  done
  for row in $rows; do
    [ -n "$(cell "$row" block)" ] || refuse "no row $row in $here/rows.tsv"
  done
  top=$results/$experiment/$preset

  if [ -n "$table_only" ]; then
    tabulate
    exit
  fi

  prepare
  [ "$threads" != 0 ] || threads=$(($(getconf _NPROCESSORS_ONLN) / jobs))
  [ "$threads" != 0 ] || threads=1
  on=${device:+--device $device}
  commit=${COMBA_COMMIT:-$("$found" --version | sed 's/.*(\(.*\))$/\1/')}
  child='' stopped='' failed=''
  trap stop HUP INT TERM
  if [ "$jobs" -gt 1 ]; then train_side_by_side; else train_rows; fi
  tabulate
  if [ -n "$failed" ]; then
    say "not run:$failed"
    exit 1
  fi
}
