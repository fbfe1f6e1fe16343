#!/bin/sh
# Damaged, hostile and missing input, full disks and signals, through the built programs. Whatever a file holds, a program ends with
# exit code 1 or 2 and one line that names the file, what was found and what was expected, and leaves nothing half written. Run
# from the build folder; COMBA_BUILD names another.
set -u
build=$(cd "${COMBA_BUILD:-.}" && pwd)
lm=$build/lm/comba-lm
vision=$build/vision/comba-vision
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 LC_ALL=C # sed and tr on bytes
export ASAN_OPTIONS="allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}" # memory that is refused, not an abort

work=$(mktemp -d)
pid=
mounted=
finish() {
  [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null
  [ -z "$mounted" ] || umount "$mounted"
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM
cd "$work" || exit 1
failures=0
cases=0

fail() {
  echo "hostile.sh: $*" >&2
  sed 's/^/    /' out err >&2 2>/dev/null
  failures=$((failures + 1))
}

# Runs a command that must succeed; its output is in the files out and err.
works() {
  cases=$((cases + 1))
  "$@" >out 2>err || fail "exit code $?: $*"
}

# refuses TEXT COMMAND...: exit code 1 or 2, one line on standard error that has TEXT, nothing on standard output.
refuses() {
  text=$1
  shift
  cases=$((cases + 1))
  "$@" >out 2>err
  code=$?
  if [ $code != 1 ] && [ $code != 2 ]; then
    fail "exit code $code, expected 1 or 2: $*"
  elif ! grep -q -F -e "$text" err; then
    fail "no '$text' in the message of: $*"
  elif [ "$(grep -c -v 'AddressSanitizer failed to allocate' err)" != 1 ] || [ -s out ]; then
    fail "expected one line of message and no output: $*"
  fi
}

absent() {
  [ ! -e "$1" ] || fail "$1 exists"
}

same() {
  cmp -s "$1" "$2" || fail "$1 and $2 differ"
}

# ---- What is damaged below ----

awk 'BEGIN { for (i = 0; i < 100; i++) printf "%d bottles of ink, %d sheets; ", i * 7 % 31, i * i % 97 }' >text.txt
cat >lm.json <<'END'
{"model_type": "comba", "vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 8,
 "expand_v": 1, "norm_eps": 1e-6, "intermediate_size": 32, "attn": {"layers": [1], "num_heads": 2, "window_size": 16}}
END
cat >vision.json <<'END'
{"model_type": "comba_vision", "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2, "head_dim": 8, "expand_v": 1,
 "image_size": 8, "patch_size": 4, "channel_mixer_dim": 32}
END
works "$build/datasets/make-shapes" --output pictures --train 60 --test 20 --size 16
png=$(find pictures -name '*.png' | sort | head -n 1)
jpeg=$(find pictures -name '*.jpg' | sort | head -n 1)
train_lm="$lm train --config lm.json --data text.txt --batch-size 2 --sequence-length 16 --steps 6 --checkpoint-every 1 \
  --keep-checkpoints 9 --threads 1 --quiet"
train_vision="$vision train --config vision.json --batch-size 8 --steps 1 --threads 1 --quiet"
works $train_lm --output lm
works $train_vision --data pictures --output vision

# A copy of MODEL to be damaged.
copy() {
  rm -rf damaged
  mkdir damaged
  cp "$1"/*.json "$1"/model.safetensors damaged
}

# ---- config.json ----

# config TEXT FIELD VALUE: lm.json with another value is refused with a message that has TEXT.
config() {
  sed "s/\"$2\": [^,}]*/\"$2\": $3/" lm.json >altered.json
  refuses "$1" "$lm" info --config altered.json
  refuses "altered.json" "$lm" train --config altered.json --data text.txt --steps 1 --output new --quiet
}
config 'hidden_size is -1, expected' hidden_size -1
config 'hidden_size is 0, expected' hidden_size 0
config 'hidden_size is 1000000, expected' hidden_size 1000000
config 'hidden_size is 16, expected' hidden_size 16.0
config 'hidden_size is "16", expected' hidden_size '"16"'
config 'hidden_size is null, expected' hidden_size null
config 'hidden_size is true, expected' hidden_size true
config 'hidden_size is an array' hidden_size '[]'
config '99999999999999999999' hidden_size 99999999999999999999
config '1e400' norm_eps 1e400
config 'norm_eps is inf' norm_eps Infinity
config 'norm_eps is nan' norm_eps NaN
config 'norm_eps is 0' norm_eps 0
config 'num_hidden_layers is 100000' num_hidden_layers 100000
config 'vocab_size is -256' vocab_size -256
config 'vocab_size is 4294967552' vocab_size 4294967552 # 2^32 + 256
config 'expand_v' expand_v 0.1
config 'expand_v is 1e+30' expand_v 1e30
config 'attn.num_heads is 3, expected a divisor' num_heads 3
config 'attn.layers' layers '"all"'
config 'attn.layers[0] is 2' layers '[2]'
config 'duplicate object key' vocab_size '256, "hidden_size": 16'
config 'model_type is "mambo?"' model_type '"mambo\\n"'
config 'model_type' model_type null
sed 's/"vocab_size": 256/"vocab_size": 16777216/; s/"hidden_size": 16/"hidden_size": 65536/' lm.json >altered.json
sed 's/"intermediate_size": 32/"intermediate_size": 16384/' lm.json >wide.json
refuses 'out of memory: ' $train_lm --config wide.json --batch-size 8192 --sequence-length 1000 --output new
refuses 'altered.json: out of memory: ' "$lm" train --data text.txt --steps 1 --output new --quiet --config altered.json
works "$lm" info --config altered.json --memory 64 # which takes no memory
grep -q '^fits  *no' out || fail "a model of terabytes fits into 64 GiB"
absent new

# whole FILE TEXT: a config with that content is refused.
whole() {
  printf '%b' "$2" >altered.json
  refuses "$1" "$lm" info --config altered.json
}
whole 'altered.json' ''
whole 'altered.json' '[]'
whole 'altered.json' '7'
whole 'a zero byte' '{"model_type": "comba\0"}'
whole 'altered.json' '{"model_type": "comba"'
whole 'altered.json' '{"model_type": "comba"} x'
whole 'altered.json' '{"model_type": "\0377\0376"}'
whole 'nested deeper than 64' "$(awk 'BEGIN { for (i = 0; i < 100000; i++) printf "[" }')"
whole 'more than 1048576 values' "$(awk 'BEGIN { printf "["; for (i = 0; i < 1100000; i++) printf "1," }')"

# A small file beside a config of 33 GB: known from the shapes, before memory is taken.
copy lm
sed 's/"vocab_size": 256/"vocab_size": 2000000/; s/"hidden_size": 16/"hidden_size": 2048/' lm/config.json \
  >damaged/config.json
refuses 'damaged/model.safetensors' "$lm" eval --model damaged --data text.txt

# ---- model.safetensors ----

weights() { # TEXT: damaged/model.safetensors is refused
  refuses 'damaged/model.safetensors' "$lm" eval --model damaged --data text.txt
  grep -q -F -e "$1" err || fail "no '$1' in the message on damaged weights"
}
altered() { # TEXT FROM TO: FROM replaced by TO, of the same length, in the header
  sed "s/$2/$3/" lm/model.safetensors >damaged/model.safetensors
  [ "$(wc -c <damaged/model.safetensors)" = "$(wc -c <lm/model.safetensors)" ] || fail "altered $2: the length changed"
  weights "$1"
}
copy lm
for size in 0 7 8 100 2000 $(($(wc -c <lm/model.safetensors) - 1)); do
  head -c "$size" lm/model.safetensors >damaged/model.safetensors
  weights expected
done
{ cat lm/model.safetensors && printf x; } >damaged/model.safetensors
weights 'bytes of data'
cp lm/model.safetensors damaged
sed 's/"use_short_conv": true/"use_short_conv": false/' lm/config.json >damaged/config.json
weights '3 not expected: model.layers.0.attn.k_conv1d.weight'
sed 's/"num_hidden_layers": 2/"num_hidden_layers": 3/' lm/config.json >damaged/config.json
weights '20 of 52 tensors missing: model.layers.2'
cp lm/config.json damaged
{ printf '\377\377\377\377\377\377\377\377' && tail -c +9 lm/model.safetensors; } >damaged/model.safetensors
weights 'a header of 18446744073709551615 bytes'
altered 'dtype is "F99"' '"F32"' '"F99"'
altered '(F64)' '"F32"' '"F64"'
altered 'I32' '"F32"' '"I32"'
altered 'shape' '\[256,16\]' '[16,256]'
altered 'shape[0] is -56' '\[256,16\]' '[-56,16]'
altered 'shape' '\[256,16\]' '"256,16"'
altered 'data_offsets' '"data_offsets":\[0,' '"data_offsets":[9,'
altered 'data_offsets is missing' '"data_offsets"' '"data_offsetz"'
altered 'model.embeddingz.weight' 'model.embeddings.weight' 'model.embeddingz.weight'

# tensors HEADER SIZE: a file from its header (under 256 bytes) and a number of zero bytes of data.
tensors() {
  header=$1
  while [ $((${#header} % 8)) != 0 ]; do header="$header "; done
  # shellcheck disable=SC2059 # the length is an octal escape
  printf "\\$(printf %03o ${#header})\\0\\0\\0\\0\\0\\0\\0"
  printf %s "$header"
  head -c "$2" /dev/zero
}
ids() { # TEXT HEADER SIZE
  tensors "$2" "$3" >ids.safetensors
  refuses 'ids.safetensors' "$lm" forward --model lm --input ids.safetensors --output never
  grep -q -F -e "$1" err || fail "no '$1' in the message on $2"
}
a='"dtype":"I32","shape"'
ids 'does not fit into 64 bits' "{\"a\":{$a:[4294967296,4294967296],\"data_offsets\":[0,0]}}" 0
ids 'data_offsets' "{\"a\":{$a:[2305843009213693952],\"data_offsets\":[0,0]}}" 0
ids 'inside of tensor' "{\"a\":{$a:[2],\"data_offsets\":[0,8]},\"b\":{$a:[2],\"data_offsets\":[4,12]}}" 12
ids 'a hole' "{\"a\":{$a:[2],\"data_offsets\":[4,12]}}" 12
ids 'duplicate' "{\"a\":{$a:[2],\"data_offsets\":[0,8]},\"a\":{$a:[2],\"data_offsets\":[0,8]}}" 8
ids 'data_offsets[0] is -1' "{\"a\":{$a:[2],\"data_offsets\":[-1,7]}}" 8
ids 'shape' "{\"a\":{$a:[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}" 4
ids '__metadata__' '{"__metadata__":{"format":3}}' 0
ids 'input_ids' "{\"input_ids\":{$a:[0,9],\"data_offsets\":[0,0]}}" 0
ids 'input_ids' "{\"input_ids\":{$a:[9],\"data_offsets\":[0,36]}}" 36
{ tensors "{\"input_ids\":{$a:[1,2],\"data_offsets\":[0,8]}}" 4 && printf '\0\1\0\0'; } >ids.safetensors
refuses 'ids.safetensors: input_ids: value 256' "$lm" forward --model lm --input ids.safetensors --output never
labels='"labels":{"dtype":"I32","shape":[1,2],"data_offsets":[8,16]}'
{ tensors "{\"input_ids\":{$a:[1,2],\"data_offsets\":[0,8]},$labels}" 12 && printf '\54\1\0\0'; } >ids.safetensors
refuses 'ids.safetensors: targets: value 300' "$lm" forward --model lm --input ids.safetensors --output never
absent never

# ---- Token files ----

# number VALUE BYTES: little endian
number() {
  # shellcheck disable=SC2059
  value=$1 i=0
  while [ $i -lt "$2" ]; do
    printf "\\$(printf %03o $((value % 256)))"
    value=$((value / 256)) i=$((i + 1))
  done
}
tokens() { # TEXT VERSION VOCABULARY WIDTH COUNT: two ids, 7 and 300
  { printf COMBATOK && number "$2" 4 && number "$3" 4 && number "$4" 4 && number 0 4 && number "$5" 8 && number 7 2 &&
    number 300 2; } >ids.tokens
  refuses "$1" "$lm" eval --model lm --data ids.tokens
  grep -q '^comba-lm eval: ids.tokens: ' err || fail "the message does not begin with the file"
}
tokens 'token 1 has id 300, expected less than the vocabulary' 1 256 2 2
tokens 'vocab_size 1000' 1 1000 2 2
tokens 'version 3' 3 256 2 2
tokens 'expected 32 and 2 ids of 2 bytes, each with a mark' 2 256 2 2
tokens '3 bytes an id' 1 256 3 2
tokens '4611686018427387904 ids' 1 256 2 4611686018427387904
tokens 'expected 32 and 3 ids' 1 256 2 3
head -c 20 ids.tokens >cut.tokens
refuses 'cut.tokens: 20 bytes' "$lm" eval --model lm --data cut.tokens
refuses 'token 256' "$lm" generate --model lm --prompt-tokens 256
refuses '99999999999999999999' "$lm" generate --model lm --prompt-tokens 99999999999999999999
refuses 'text.txt/below' "$lm" eval --model lm --data text.txt/below

# ---- Pictures ----

mkdir bad
head -c 60 "$png" >bad/cut.png
head -c 400 "$jpeg" >bad/cut.jpg
{ printf X && tail -c +2 "$png"; } >bad/magic.png
: >bad/empty.png
echo 'no picture' >bad/text.png
printf '\0\0\0\030ftypheic\0\0\0\0mif1' >bad/photo.heic
printf 'RIFF\0\0\0\0WEBPVP8 ' >bad/photo.webp
header='\211PNG\r\n\032\n\0\0\0\015IHDR' end='\0\0\0\0\0\0\0\0IEND\256B`\202'
# shellcheck disable=SC2059
printf "$header\\0\\0\\0\\0\\0\\0\\0\\0\\10\\2\\0\\0\\0\\0\\0\\0\\0$end" >bad/zero.png
# shellcheck disable=SC2059
printf "$header\\177\\377\\377\\377\\177\\377\\377\\377\\10\\2\\0\\0\\0\\0\\0\\0\\0$end" >bad/bomb.png
# shellcheck disable=SC2059
printf "$header\\0\\0\\040\\0\\0\\0\\040\\0\\10\\2\\0\\0\\0\\013\\054\\056\\011$end" >bad/small-bomb.png # 8192 x 8192
printf '\377\330\377\300\0\021\010\377\377\377\377\003\001\042\0\002\021\001\003\021\001\377\331' >bad/bomb.jpg
printf '\377\330\377' >bad/start.jpg
tr '\000-\377' '\377\000-\376' <"$png" | { head -c 0 && printf '\211PNG\r\n\032\n' && cat; } >bad/noise.png
bad=0
for file in bad/*; do
  refuses "$file: " "$vision" predict --model vision "$file"
  bad=$((bad + 1))
done
refuses 'HEIC' "$vision" predict --model vision bad/photo.heic
refuses 'WebP' "$vision" predict --model vision bad/photo.webp
refuses 'bad: not a regular file' "$vision" predict --model vision bad
ln -s nowhere dangling.png
refuses 'dangling.png' "$vision" predict --model vision dangling.png

# In a training folder they are named, counted and skipped, up to the larger of ten and 5 %.
cp -r pictures mixed
class=$(ls mixed/train | head -n 1)
for file in cut.png cut.jpg magic.png text.png photo.heic zero.png; do cp "bad/$file" "mixed/train/$class"; done
: >"mixed/train/$class/.hidden"
works $vision train --config vision.json --batch-size 8 --steps 1 --threads 1 --data mixed --output skipping
[ "$(grep -c '^skipped: mixed/train/' err)" = 6 ] || fail "not each of 6 damaged pictures is named"
grep -q '^6 pictures could not be read' err || fail "the damaged pictures are not counted"
[ "$(wc -l <skipping/skipped.tsv)" = 6 ] || fail "skipped.tsv has not 6 lines"
grep -q "^train/$class/photo.heic	.*HEIC" skipping/skipped.tsv || fail "skipped.tsv does not say why"
mkdir mixed/train/one
for i in 1 2 3 4 5; do cp bad/text.png "mixed/train/$class/text$i.png"; done
refuses 'mixed/train/one: class folder without files' $train_vision --data mixed --output new
cp bad/text.png mixed/train/one
rmdir mixed/test/one 2>/dev/null
refuses '12 of 92 pictures cannot be used, expected at most 10; the first: mixed/train' \
  $train_vision --data mixed --output new
refuses "class 'one' has no training pictures" $train_vision --data mixed --output new --max-bad-fraction 0.5
rm -r mixed/train/one
works $train_vision --data mixed --output allowed --max-bad-fraction 0.5
sed 's/"image_size"/"note": Infinity, "image_size"/' vision.json >noted.json
works $vision train --config noted.json --batch-size 8 --steps 1 --threads 1 --data pictures --output noted --quiet
grep -q 'unknown fields.*note' err || fail "no warning of an unknown field"
absent new
cp bad/cut.png "mixed/test/$class"
refuses "mixed/test/$class/cut.png" "$vision" eval --model vision --data mixed
works "$vision" eval --model vision --data mixed --skip-bad
grep -q '^skipped  *1 ' out || fail "eval does not count what it skipped"

# ---- IDX and CIFAR ----

zeros() { # COUNT of zero bytes
  head -c "$1" /dev/zero
}
idx() { # TEXT IMAGES-HEADER BYTES LABELS-HEADER LABELS
  rm -rf idx
  mkdir idx
  # shellcheck disable=SC2059 # octal escapes
  { printf "$2" && zeros "$3"; } >idx/train-images-idx3-ubyte
  # shellcheck disable=SC2059
  printf "$4$5" >idx/train-labels-idx1-ubyte
  [ -z "$classes" ] || printf '%b' "$classes" >idx/classes.txt
  refuses "$1" $train_vision --data idx --output new
}
classes=
images='\0\0\10\3\0\0\0\2\0\0\0\4\0\0\0\4' labels='\0\0\10\1\0\0\0\2'
idx 'expected an IDX header' '\0\0\10\3' 0 "$labels" '\0\1'
idx '47 bytes, expected 48' "$images" 31 "$labels" '\0\1'
idx '49 bytes, expected 48' "$images" 33 "$labels" '\0\1'
idx 'magic number 2052' '\0\0\10\4\0\0\0\2\0\0\0\4\0\0\0\4' 32 "$labels" '\0\1'
idx '4294967295 records' '\0\0\10\3\377\377\377\377\0\0\0\4\0\0\0\4' 32 "$labels" '\0\1'
idx 'idx/train-images-idx3-ubyte: picture of 4 x 0 pixels' '\0\0\10\3\0\0\0\2\0\0\0\0\0\0\0\4' 0 "$labels" '\0\1'
idx 'idx/train-images-idx3-ubyte: picture of 4294967295 x 4294967295 pixels' '\0\0\10\3\0\0\0\2\377\377\377\377\377\377\377\377' 32 "$labels" '\0\1'
idx '3 labels' "$images" 32 '\0\0\10\1\0\0\0\3' '\0\1\0'
idx 'one class' "$images" 32 "$labels" '\0\0'
classes='cat\ndog\n'
idx 'label 2 at position 1, expected less than 2' "$images" 32 "$labels" '\0\2'
classes='cat\ncat\n'
idx "class 'cat' stands there twice" "$images" 32 "$labels" '\0\1'
rm idx/train-labels-idx1-ubyte idx/classes.txt
refuses 'train-labels-idx1-ubyte beside it' $train_vision --data idx --output new

mkdir cifar
: >cifar/data_batch_1.bin
refuses 'data_batch_1.bin: 0 bytes' $train_vision --data cifar --output new
zeros 3074 >cifar/data_batch_1.bin
refuses '3074 bytes, expected a multiple of 3073' $train_vision --data cifar --output new
{ printf '\012' && zeros 3072; } >cifar/data_batch_1.bin
refuses 'label 10 at record 0, expected less than 10' $train_vision --data cifar --output new
absent new

# ---- Files beside the weights ----

beside() { # FILE CONTENT TEXT
  copy vision
  printf '%b' "$2" >"damaged/$1"
  refuses "damaged/$1" "$vision" predict --model damaged "$png"
  grep -q -F -e "$3" err || fail "no '$3' in the message on $1"
}
beside preprocessor_config.json '' 'damaged'
beside preprocessor_config.json '[]' 'expected a JSON object'
beside preprocessor_config.json '{"size": -3}' "'size' is -3, expected"
beside preprocessor_config.json '{"size": 8, "image_std": [0, 0, 0]}' "'image_std'"
beside preprocessor_config.json '{"size": 9, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}' 'size 9'
beside config.json '{"model_type": "comba_vision", "num_classes": -1}' 'num_classes is -1'

# A run to be resumed whose files are damaged.
resume() { # FILE CONTENT TEXT
  rm -rf run
  cp -r lm run
  printf '%b' "$2" >"run/$1"
  refuses "run/$1" $train_lm --output run --resume
  grep -q -F -e "$3" err || fail "no '$3' in the message on $1"
}
resume run.json '' 'run.json'
resume run.json '[1]' 'an array of 1, expected a JSON object'
resume run.json '{"a\n": 1' 'unexpected newline'
resume checkpoint-6/trainer_state.json '{}' 'step'
resume checkpoint-6/trainer_state.json '{"step": 6, "training_passes": -1}' 'training_passes'
resume checkpoint-6/optimizer.safetensors 'xx' 'expected'
resume checkpoint-6/model.safetensors '' 'expected'
rm -rf run
cp -r lm run
printf 'no JSON\0\n{"step": 1}\n{"step": 9' >run/log.jsonl
works $train_lm --output run --resume
same lm/model.safetensors run/model.safetensors

# ---- Output that cannot be written ----

refuses 'text.txt' $train_lm --output text.txt
refuses 'text.txt/run' $train_lm --output text.txt/run
refuses 'the path of a folder is empty' $train_lm --output ''
refuses 'text.txt' "$vision" eval --model vision --data pictures --figures text.txt/out --quiet
if [ "$(id -u)" != 0 ]; then
  mkdir locked
  chmod 500 locked
  refuses 'locked/run' $train_lm --output locked/run
  cp text.txt unreadable.txt
  chmod 0 unreadable.txt
  refuses 'unreadable.txt' "$lm" eval --model lm --data unreadable.txt
elif command -v setpriv >/dev/null; then # as somebody whom the permissions bind, if that one can reach the programs
  chmod 755 .
  other="setpriv --reuid=65534 --regid=65534 --clear-groups"
  cp text.txt unreadable.txt
  chmod 600 unreadable.txt
  mkdir locked
  if $other "$lm" --version >out 2>&1; then
    refuses 'unreadable.txt' $other "$lm" eval --model lm --data unreadable.txt
    refuses 'locked/run' $other $train_lm --output locked/run
  fi
fi

# The disk is full in the middle: the last good checkpoint stays, and with more room the run ends as one that was never stopped.
full() { # FOLDER: the run that filled the disk left it
  [ -s "$1/checkpoint-1/trainer_state.json" ] || fail "$1: no checkpoint is left"
  absent "$1/model.safetensors"
  [ -z "$(find "$1" -name '*tmp*')" ] || fail "$1 holds half a checkpoint"
}
mkdir small
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=300k tmpfs small 2>/dev/null; then
  mounted=$work/small
  refuses 'No space left on device' $train_lm --output small/run
  full small/run
  mount -o remount,size=4m small
  works $train_lm --output small/run --resume
  same lm/model.safetensors small/run/model.safetensors
  mount -o remount,ro small
  refuses 'Read-only file system' $train_lm --output small/run --resume
  refuses 'small/new' $train_lm --output small/new
  umount small && mounted=
else
  # Files of at most 100 KiB: the weights fit, the optimizer's moments do not.
  (
    trap '' XFSZ
    ulimit -f 200
    refuses 'optimizer.safetensors: cannot write' $train_lm --output limited
    exit $failures
  ) || failures=$((failures + 1))
  absent limited/model.safetensors
  [ -z "$(find limited -name '*tmp*' -o -name 'checkpoint-*')" ] || fail "limited holds half a checkpoint"
  works $train_lm --output limited --resume
  same lm/model.safetensors limited/model.safetensors
fi

# ---- Signals ----

# SIGTERM and SIGINT at any moment: exit code 0 in order or death by the signal before the run began, and then the run goes on.
# (What a shell starts in the background ignores SIGINT until it asks for it.)
long="$train_lm --steps 60 --checkpoint-every 7 --learning-rate 0.001 --warmup-steps 3"
works $long --output never-stopped
for delay in 0 0.01 0.03 0.06 0.1 0.2; do
  signal=TERM
  case $delay in 0.01 | 0.06 | 0.2) signal=INT ;; esac
  cases=$((cases + 1))
  $long --output terminated --resume >out 2>err &
  pid=$!
  sleep $delay
  kill -$signal $pid 2>/dev/null
  { wait $pid; } 2>/dev/null
  code=$?
  pid=
  [ $code = 0 ] || [ $code = 143 ] || fail "exit code $code after SIG$signal"
  [ -z "$(find terminated -name '*tmp*' 2>/dev/null)" ] || [ $code = 143 ] || fail "SIG$signal left half a file"
done
works $long --output terminated --resume
same never-stopped/model.safetensors terminated/model.safetensors

# Waits until FOLDER has a checkpoint or the run has ended; old ones go, so any will do.
await_checkpoint() {
  while [ -z "$(find "$1" -maxdepth 1 -name 'checkpoint-*[0-9]' 2>/dev/null)" ] && kill -0 $pid 2>/dev/null; do sleep 0.02; done
}

# The folder vanishes below a run.
$long --output vanishing --steps 100000 >out 2>err &
pid=$!
await_checkpoint vanishing
mv vanishing vanished
cases=$((cases + 1))
wait $pid
code=$?
pid=
[ $code = 1 ] && [ "$(wc -l <err)" = 1 ] && grep -q 'vanishing' err || fail "exit code $code after the folder vanished"
refuses 'another --output' $train_lm --output vanished
step=$(find vanished -name 'checkpoint-*[0-9]' | sed 's/.*-//' | sort -n | tail -n 1)
works $long --output vanished --resume --steps $((step + 1))
[ -s vanished/model.safetensors ] || fail "the run whose folder vanished does not go on in it"

# It is deleted below a run, file by file.
$long --output deleted --steps 100000 >out 2>err &
pid=$!
await_checkpoint deleted
while ! rm -rf deleted 2>/dev/null; do :; done
cases=$((cases + 1))
wait $pid
code=$?
pid=
[ $code = 1 ] && [ "$(wc -l <err)" = 1 ] && grep -q 'deleted' err || fail "exit code $code after the folder was deleted"

[ $failures = 0 ] && echo "hostile.sh: $cases cases" || echo "hostile.sh: $failures failures" >&2
exit $((failures != 0))
