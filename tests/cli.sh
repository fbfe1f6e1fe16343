#!/bin/sh
# The two programs from the outside: every subcommand on tiny models, wrong input, and runs that are interrupted, killed,
# resumed, or given another number of threads. Run from the build folder; COMBA_BUILD names another.
set -u
build=$(cd "${COMBA_BUILD:-.}" && pwd)
lm=$build/lm/comba-lm
vision=$build/vision/comba-vision
shapes=$build/datasets/make-shapes
json=$build/tests/json-has
OMP_WAIT_POLICY=passive
export OMP_WAIT_POLICY

work=$(mktemp -d)
pid=
trap 'test -z "$pid" || kill -9 "$pid" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work" || exit 1
failures=0

fail() {
  echo "cli.sh: $*" >&2
  sed 's/^/    /' out err >&2 2>/dev/null
  failures=$((failures + 1))
}

# Runs a command that must succeed; its output is in the files out and err.
works() {
  "$@" >out 2>err || fail "exit code $?: $*"
}

# fails CODE TEXT COMMAND...: exits with CODE, with one line on standard error that has TEXT, and nothing on standard output.
fails() {
  code=$1 text=$2
  shift 2
  "$@" >out 2>err
  found=$?
  lines=$(sed '/^Try `/,$d' err | wc -l) # argp's hint comes after the message
  if [ $found != "$code" ]; then
    fail "exit code $found, expected $code: $*"
  elif ! grep -q -F -e "$text" err; then
    fail "no '$text' in the message of: $*"
  elif [ "$lines" != 1 ] || [ -s out ]; then
    fail "expected one line of message and no output: $*"
  fi
}

# says TEXT: the last command's standard output has it; complains TEXT: its standard error.
says() {
  grep -q -e "$1" out || fail "no '$1' in the output"
}
complains() {
  grep -q -e "$1" err || fail "no '$1' on standard error"
}

is_json() {
  "$json" "$@" <out 2>err || fail "output is not JSON with $*"
}

same() {
  cmp -s "$1" "$2" || fail "$1 and $2 differ"
}

absent() {
  [ ! -e "$1" ] || fail "$1 exists"
}

# Waits until FILE is there or the background process has ended.
await() {
  while [ ! -e "$1" ] && kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
}

# A safetensors file from its JSON header (under 256 bytes) and a number of zero bytes of data.
tensors() {
  header=$1
  while [ $((${#header} % 8)) != 0 ]; do header="$header "; done
  # shellcheck disable=SC2059 # the length is an octal escape
  printf "\\$(printf %03o ${#header})\\0\\0\\0\\0\\0\\0\\0"
  printf %s "$header"
  head -c "$2" /dev/zero
}

# ---- Data and configs ----

awk 'BEGIN { for (i = 0; i < 300; i++) printf "%d bottles of ink, %d sheets; ", i * 7 % 31, i * i % 97 }' >text.txt
head -c 1500 text.txt >short.txt
tr "0-9" "1-90" <text.txt >other.txt
cat >lm.json <<END
{"model_type": "comba", "vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 8,
 "expand_v": 1, "intermediate_size": 32, "attn": {"layers": [1], "num_heads": 2, "window_size": 16}}
END
cat >vision.json <<END
{"model_type": "comba_vision", "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 8, "expand_v": 1,
 "image_size": 16, "patch_size": 4, "channel_mixer_dim": 32, "train_scan_type": "random-scan", "test_scan_type": "bi-scan",
 "hidden_dropout_prob": 0.1, "drop_path_rate": 0.1}
END
works "$shapes" --output pictures --train 80 --test 30 --size 20
picture=$(find pictures/test -name '*.png' | sort | head -n 1)

train_lm="$lm train --config lm.json --data text.txt --validation-data short.txt --batch-size 4 --sequence-length 32 \
  --steps 24 --checkpoint-every 2 --evaluate-every 6 --log-every 1 --threads 1"
train_vision="$vision train --config vision.json --data pictures --batch-size 8 --epochs 2.4 --checkpoint-every 2 \
  --evaluate-every 6 --log-every 1 --threads 1"

# ---- Every subcommand ----

for program in "$lm" "$vision"; do
  works "$program" --version
  says '^comba-[a-z]* [0-9.]*\( ([^ ]*)\)\{0,1\}$'
  works "$program" --help
  says predict\\\|generate
  works "$program" train --help
  says --gradient-accumulation
  works "$program" info --mixers
  says '^comba$'
  works "$program" info --mixers --json
  is_json model_type recurrence state_elements flops_per_token source
  works "$program" info --presets
  says '^[a-z]'
  works "$program" --manual
  says '^\.TH COMBA-'
  says gradients
  works "$program" --completion
  says "--gradient-accumulation"
done

# complete WORD...: what bash offers for the last word
complete() {
  works "$1" --completion
  {
    cat out
    echo "COMP_WORDS=($(printf " '%s'" "$@")) COMP_CWORD=$(($# - 1)); _$(basename "$1" | tr - _); printf '%s\\n' \"\${COMPREPLY[@]}\""
  } >complete.bash
  works bash complete.bash
}
if command -v bash >/dev/null; then
  complete "$lm" tr
  says '^train$'
  complete "$lm" train --mode ch
  says '^chunk$'
  complete "$vision" train --label
  says '^--label-smoothing$'
fi

works $train_lm --output lm
for file in config.json model.safetensors log.jsonl curves.svg run.json best/model.safetensors \
  checkpoint-24/optimizer.safetensors checkpoint-24/trainer_state.json; do
  [ -s lm/$file ] || fail "lm/$file is missing or empty"
done
absent lm/checkpoint-18 # three are kept
[ "$(grep -c '"loss"' lm/log.jsonl)" = 28 ] || fail "lm/log.jsonl has not 24 steps and 4 evaluations"
works $train_lm --output lm-json --json --quiet --steps 2
is_json step=2 finished=true evaluation
[ ! -s err ] || fail "--quiet is not quiet"

works "$lm" eval --model lm --data text.txt --sequence-length 32
says '^perplexity'
works "$lm" eval --model lm --data text.txt --json
is_json loss perplexity bits_per_byte tokens="$(($(wc -c <text.txt) - 1))"
works "$lm" generate --model lm --prompt "7 bottles" --max-tokens 30 --temperature 0
says '^7 bottles'
complains 'tokens a second'
mv out greedy
works "$lm" generate --model lm --prompt "7 bottles" --max-tokens 30 --top-k 1 --quiet --seed 3
printf '7 bottles' | cat - out >greedy-again # quiet output is the continuation alone
same greedy greedy-again
works "$lm" generate --model lm --prompt-tokens 55,32 --max-tokens 5 --top-p 0.9 --json
is_json tokens text tokens_per_second
works "$lm" info --model lm
says '^parameters'
works "$lm" info --preset comba-tiny --json
is_json model_type='"comba"' parameters arena_bytes unshared_bytes
works "$lm" info --config lm.json
says '^recompute    none'
works "$lm" info --config lm.json --memory 0.001 --batch-size 4
says '^fits         no'
says '^recompute    block;'
works "$lm" info --config lm.json --recompute light --memory 4 --json
is_json 'recompute="light"' recompute_blocks=2 blocks=2 fits=true total_bytes weights_bytes gradients_bytes moments_bytes workspace_bytes

tensors '{"input_ids":{"dtype":"I32","shape":[2,9],"data_offsets":[0,72]}}' 72 >ids.safetensors
works "$lm" forward --model lm --input ids.safetensors --output forward.safetensors --gradients
for name in logits loss grad.model.embeddings.weight; do
  grep -q -a "\"$name\"" forward.safetensors || fail "forward.safetensors lacks $name"
done
works "$lm" forward --model lm --input ids.safetensors --output forward-two.safetensors --gradients --threads 2
same forward.safetensors forward-two.safetensors

works $train_vision --output vision
for file in config.json model.safetensors preprocessor_config.json log.jsonl curves.svg best/preprocessor_config.json \
  best/model.safetensors; do
  [ -s vision/$file ] || fail "vision/$file is missing or empty"
done
works "$vision" eval --model vision --data pictures --figures figures
says '^accuracy'
[ -s figures/confusion.png ] && [ -s figures/mistakes.png ] || fail "eval --figures wrote no pictures"
works "$vision" eval --model vision --data pictures --json
is_json accuracy top5 loss confusion balanced_accuracy macro_f1 majority_rate pictures=30
works "$vision" eval --model vision --data pictures --split train --json
is_json pictures=80 'split="train"'
works "$vision" predict --model vision "$picture" "$picture"
says '%'
works "$vision" predict --model vision --csv "$picture" "$picture"
[ "$(wc -l <out)" = 3 ] || fail "predict --csv wrote not a header and two lines"
says '^image,class_1,probability_1'
works "$vision" predict --model vision --json "$picture"
is_json image predictions
works "$vision" info --model vision --json
is_json 'model_type="comba_vision"' parameters
works "$build/examples/mixer"
works "$build/examples/decode" lm "7 bottles"
says '^7 bottles'
works "$build/examples/classify" vision "$picture"
says '%'
tensors '{"pixel_values":{"dtype":"F32","shape":[2,3,16,16],"data_offsets":[0,6144]},"labels":{"dtype":"I64","shape":[2],"data_offsets":[6144,6160]}}' \
  6160 >pixels.safetensors
works "$vision" forward --model vision --input pixels.safetensors --output forward.safetensors --gradients
grep -q -a '"grad.classifier.weight"' forward.safetensors || fail "forward.safetensors lacks grad.classifier.weight"

# A validation split of the folder itself: eval uses its rows until it is told otherwise.
works "$vision" train --config vision.json --data pictures/train --validation-fraction 0.25 --steps 2 --output split --quiet
[ -s split/split.tsv ] || fail "split/split.tsv is missing"
works "$vision" eval --model split --data pictures/train --json
is_json 'split="validation"' pictures=20
works "$vision" eval --model split --data pictures/train --json --split all
is_json pictures=80

# ---- Wrong command lines: exit code 2 ----

fails 2 "there is no command 'paint'" "$lm" paint
fails 2 "--steps is 'many'" "$lm" train --steps many
fails 2 "--batch-size is '0'" "$vision" train --batch-size 0
fails 2 "--mode is 'fast', expected one of auto, chunk, recurrent" "$lm" eval --mode fast
fails 2 "--recompute is 'all', expected one of auto, none, light, block" "$lm" train --recompute all
fails 2 "--memory is '0'" "$lm" info --config lm.json --memory 0
fails 2 "--data is missing" "$lm" train --config lm.json --output new
fails 2 "--output is missing" "$lm" train --config lm.json --data text.txt
fails 2 "--model is missing" "$lm" generate --prompt a
fails 2 "one of --prompt" "$lm" generate --model lm
fails 2 "--top-p is '2'" "$lm" generate --model lm --prompt a --top-p 2
fails 2 "--preset or --config is missing" "$lm" train --data text.txt --output new
fails 2 "--preset is 'huge', expected one of comba-tiny" "$lm" train --preset huge --data text.txt --output new
fails 2 "--min-learning-rate is 1" $train_lm --output new --min-learning-rate 1
fails 2 "unrecognized option" "$vision" train --colour
fails 2 "--split is 'some'" "$vision" eval --model vision --data pictures --split some
fails 2 "no picture is given" "$vision" predict --model vision
fails 2 "one of --model" "$vision" info
fails 2 "token 300" "$lm" generate --model lm --prompt-tokens 300
fails 2 "token numbers" "$lm" generate --model lm --prompt-tokens 1,x
fails 2 "the prompt is empty" "$lm" generate --model lm --prompt ""
fails 2 "use comba-vision" "$lm" eval --model vision --data text.txt
fails 2 "use comba-lm" "$vision" eval --model lm --data pictures

# ---- Missing, damaged and unfitting files ----

fails 1 "missing.txt" "$lm" eval --model lm --data missing.txt
fails 1 "missing/config.json" "$lm" eval --model missing --data text.txt
fails 1 "missing.png" "$vision" predict --model vision missing.png
fails 1 "nowhere" "$vision" eval --model vision --data nowhere
: >empty
fails 1 "empty" "$lm" eval --model lm --data empty
fails 1 "empty: no tokens" "$lm" train --config lm.json --data empty --output new --steps 1 --quiet

damage() { # a copy of MODEL under the name of the damage
  rm -rf damaged
  mkdir damaged
  cp "$1"/*.json "$1"/model.safetensors damaged
}
damage lm
head -c 2000 lm/model.safetensors >damaged/model.safetensors
fails 1 "damaged/model.safetensors" "$lm" eval --model damaged --data text.txt
printf 'x' >damaged/model.safetensors
fails 1 "damaged/model.safetensors" "$lm" eval --model damaged --data text.txt
rm damaged/model.safetensors
fails 1 "damaged: neither model.safetensors nor" "$lm" eval --model damaged --data text.txt
damage lm
sed 's/"hidden_size": 16/"hidden_size": 32/' lm/config.json >damaged/config.json
fails 1 "has shape (256, 16), expected (256, 32)" "$lm" eval --model damaged --data text.txt
sed 's/"num_heads": 2/"num_heads": 0/' lm/config.json >damaged/config.json
fails 2 "num_heads is 0" "$lm" eval --model damaged --data text.txt
sed 's/"head_dim": 8/"head_dim": "wide"/' lm/config.json >damaged/config.json
fails 2 "head_dim" "$lm" eval --model damaged --data text.txt
sed 's/"comba"/"mambo"/' lm/config.json >damaged/config.json
fails 2 "mambo" "$lm" eval --model damaged --data text.txt
head -c 100 lm/config.json >damaged/config.json
fails 2 "damaged/config.json" "$lm" eval --model damaged --data text.txt
damage vision
rm damaged/preprocessor_config.json
fails 1 "damaged/preprocessor_config.json" "$vision" predict --model damaged "$picture"
head -c 200 "$picture" >cut.png
fails 1 "cut.png" "$vision" predict --model vision cut.png
tensors '{"input_ids":{"dtype":"I32","shape":[2,9],"data_offsets":[0,72]}}' 60 >cut.safetensors
fails 1 "cut.safetensors" "$lm" forward --model lm --input cut.safetensors --output never
tensors '{"input_ids":{"dtype":"F32","shape":[2,9],"data_offsets":[0,72]}}' 72 >floats.safetensors
fails 1 "input_ids" "$lm" forward --model lm --input floats.safetensors --output never
fails 1 "pixel_values" "$vision" forward --model vision --input ids.safetensors --output never
fails 1 "no/folder" "$lm" forward --model lm --input ids.safetensors --output no/folder/never
absent never
sed 's/"expand_v"/"expand_w"/' lm.json >typo.json
works "$lm" info --config typo.json
complains 'typo.json.*expand_w'
works "$lm" train --config typo.json --data text.txt --output typo --steps 1 --quiet
complains 'typo.json.*expand_w'
sed 's/"vocab_size": 256/"vocab_size": 100/' lm.json >small.json
fails 2 "text.txt: a plain file has ids up to 255" "$lm" train --config small.json --data text.txt --output new --steps 1
sed 's/"image_size"/"num_classes": "ten", "image_size"/' vision.json >word.json
fails 2 'word.json: num_classes is "ten"' "$vision" train --config word.json --data pictures --output new
fails 2 "num_classes is 7" "$vision" train --config /dev/stdin --data pictures --output new <<END
$(sed 's/"image_size"/"num_classes": 7, "image_size"/' vision.json)
END
fails 2 "short.txt: 1500 tokens in all, expected at least 1501" "$lm" train --config lm.json --data short.txt --sequence-length 1500 --steps 1 \
  --output new --quiet
absent new

"$lm" eval --model lm --data text.txt >/dev/full 2>err && fail "eval succeeds though its output cannot be written"
complains 'standard output cannot be written'

damage lm # its last weight becomes a NaN
{ head -c $(($(wc -c <lm/model.safetensors) - 4)) lm/model.safetensors && printf '\0\0\300\177'; } >damaged/model.safetensors
fails 1 "damaged: the model gives logits that are not finite" "$lm" generate --model damaged --prompt a --max-tokens 3 --json
works "$lm" eval --model damaged --data text.txt --json
is_json loss

# A run whose gradient is not finite says where and keeps the step before; one that may pass over such steps ends in order, and its
# figures are JSON. Which tensor is named depends on rounding.
fails 1 "' is not finite" $train_lm --output diverging --learning-rate 1000 \
  --gradient-clip 0 --quiet
grep -q "the gradient of 'model\.[A-Za-z0-9._]*' is not finite" err || fail "no tensor is named"
[ -d "diverging/checkpoint-$(sed -n 's/.*those of step \([0-9]*\).*/\1/p' err)" ] || fail "the step before is not kept"
works $train_lm --output diverged --learning-rate 1000 --gradient-clip 0 --skip-nonfinite 24 --json
is_json finished=true evaluation
tail -n 1 diverged/log.jsonl >out
is_json step=24
works $train_vision --output diverged-vision --learning-rate 1000 --gradient-clip 0 --skip-nonfinite 24 --json
is_json finished=true evaluation

# ---- The output folder ----

fails 2 "the folder is not empty" $train_lm --quiet --output lm
fails 2 "the folder is not empty" $train_vision --quiet --output pictures
mkdir foreign
echo mine >foreign/config.json
fails 2 "no run.json" $train_lm --quiet --output foreign --resume
[ "$(ls foreign)" = config.json ] && [ "$(cat foreign/config.json)" = mine ] ||
  fail "a folder that is not a run's was written to"
fails 2 "--resume: learning_rate was" $train_lm --quiet --output lm --resume --learning-rate 0.001
fails 2 "--resume: seed was" $train_lm --quiet --output lm --resume --seed 7
fails 2 "--resume: mode was" $train_lm --quiet --output lm --resume --mode recurrent
fails 2 "--resume: data was" $train_lm --quiet --output lm --resume --data other.txt
fails 2 "--resume: batch_size was" $train_vision --quiet --output vision --resume --batch-size 4
fails 2 "--resume: data was" "$vision" train --config vision.json --data pictures/test --batch-size 8 --steps 24 \
  --output vision --resume --quiet
sed 's/"expand_v": 1/"expand_v": 2/' lm.json >wider.json
fails 2 "--resume: config was" $train_lm --quiet --output lm --resume --config wider.json
fails 2 "found 6" $train_lm --quiet --output lm --resume --steps 6

works $train_lm --output fresh --resume
same lm/model.safetensors fresh/model.safetensors
works $train_lm --output fresh --resume --steps 30 # a longer run
complains 'resuming from fresh/checkpoint-24'
[ -d fresh/checkpoint-30 ] || fail "the longer run wrote no checkpoint-30"
works $train_lm --output other --init-from lm --steps 1 --learning-rate 0
same lm/model.safetensors other/model.safetensors
fails 1 "model.safetensors" "$lm" train --preset comba-tiny --data text.txt --steps 1 --output unfit --init-from lm --quiet
absent unfit

# ---- Threads, signals ----

works $train_lm --output lm-two --threads 2
same lm/model.safetensors lm-two/model.safetensors
works $train_vision --output vision-two --threads 2
same vision/model.safetensors vision-two/model.safetensors
same vision/best/model.safetensors vision-two/best/model.safetensors

# Runs that last long enough to be stopped on the way, each beside one that was not.
long_lm="$train_lm --steps 80 --checkpoint-every 4 --keep-checkpoints 99"
long_vision="$train_vision --steps 60 --checkpoint-every 4 --keep-checkpoints 99"
works $long_lm --output long-lm
works $long_vision --output long-vision

works $long_lm --output minutes --max-minutes 0.0005
complains 'with --resume goes on from'
works $long_lm --output minutes --resume
same long-lm/model.safetensors minutes/model.safetensors

# SIGINT ends in order; meanwhile the folder is locked.
interrupt() { # NAME COMMAND...
  name=$1
  shift
  "$@" --output "int-$name" >out 2>stopped &
  pid=$!
  await "int-$name/checkpoint-8"
  kill -STOP $pid
  if [ ! -e "int-$name/model.safetensors" ]; then
    fails 2 'another process is training there' "$@" --output "int-$name" --resume --quiet
    kill -CONT $pid
    kill -INT $pid
    wait $pid || fail "exit code $? after SIGINT: $*"
    grep -q 'with --resume goes on from' stopped || fail "SIGINT: nothing says how to resume: $(cat stopped)"
    [ -s "int-$name/model.safetensors" ] && [ -s "int-$name/curves.svg" ] || fail "SIGINT: no weights or curves"
    interrupted=$((interrupted + 1))
  fi
  kill -CONT $pid 2>/dev/null
  wait $pid
  pid=
  works "$@" --output "int-$name" --resume
  same "long-$name/model.safetensors" "int-$name/model.safetensors"
  same "long-$name/best/model.safetensors" "int-$name/best/model.safetensors"
}
interrupted=0
interrupt lm $long_lm
interrupt vision $long_vision
[ $interrupted != 0 ] || fail "no run was caught by SIGINT"

# SIGKILL before the first checkpoint, as soon as one is there, and a little later.
murder() { # NAME COMMAND...
  name=$1
  shift
  for point in .lock run.json checkpoint-4 checkpoint-12 checkpoint-24 checkpoint-40; do
    "$@" --output "kill-$name" --resume >out 2>err &
    pid=$!
    await "kill-$name/$point"
    [ $point != checkpoint-24 ] || sleep 0.03
    kill -9 $pid 2>/dev/null && [ ! -e "kill-$name/model.safetensors" ] && killed=$((killed + 1))
    wait $pid 2>/dev/null
    pid=
  done
  works "$@" --output "kill-$name" --resume
  same "long-$name/model.safetensors" "kill-$name/model.safetensors"
  same "long-$name/best/model.safetensors" "kill-$name/best/model.safetensors"
  steps=$(grep -c learning_rate "kill-$name/log.jsonl")
  [ "$steps" = "$(grep -c learning_rate "long-$name/log.jsonl")" ] || fail "kill-$name/log.jsonl has $steps steps"
  [ -z "$(find "kill-$name" -name '*tmp*' -o -name '*.old')" ] || fail "kill-$name holds what killed processes left"
}
killed=0
murder lm $long_lm
murder vision $long_vision
[ $killed -ge 4 ] || fail "only $killed of 12 runs were killed on the way"

[ $failures = 0 ] || echo "cli.sh: $failures failures" >&2
exit $((failures != 0))
