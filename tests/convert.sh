#!/bin/sh
# comba-lm convert from the outside: each layout there and back, bit by bit, and what is refused. Run from the build folder;
# COMBA_BUILD names another.
set -u
lm=$(cd "${COMBA_BUILD:-.}" && pwd)/lm/comba-lm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work" || exit 1
failures=0

fail() {
  echo "convert.sh: $*" >&2
  cat err >&2 2>/dev/null
  failures=$((failures + 1))
}

works() {
  "$@" >out 2>err || fail "exit code $?: $*"
}

# refuses TEXT COMMAND...: fails with TEXT in its message.
refuses() {
  text=$1
  shift
  if "$@" >out 2>err; then fail "not refused: $*"; fi
  grep -q -F -e "$text" err || fail "no '$text' in the message of: $*"
}

# make NAME CONFIG: a model folder with weights as they are drawn, and after one step of training.
make() {
  echo "$2" >"$1.json"
  works "$lm" train --config "$1.json" --data text --steps 1 --batch-size 1 --sequence-length 16 --threads 1 --quiet \
    --output "$1"
}

# round_trip FORMAT NAME: ours to FORMAT and back, and back again.
round_trip() {
  works "$lm" convert --to "$1" "$2" --output "$2-$1"
  works "$lm" convert --from "$1" "$2-$1" --output "$2-back"
  works "$lm" convert --to "$1" "$2-back" --output "$2-again"
  cmp -s "$2/model.safetensors" "$2-back/model.safetensors" || fail "$2: other weights after $1"
  cmp -s "$2-$1/model.safetensors" "$2-again/model.safetensors" || fail "$2: other weights in the layout $1"
  cmp -s "$2-$1/config.json" "$2-again/config.json" || fail "$2: another config in the layout $1"
}

i=0
while [ $i -lt 100 ]; do
  echo "line $i of a text to take one step on"
  i=$((i + 1))
done >text

small='"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 256'
make mamba '{"model_type": "mamba2", "head_dim": 8, "state_size": 8, "n_groups": 2, "dt_limit": [0.001, 0.5], '"$small}"
round_trip mamba_ssm mamba
make tied '{"model_type": "mamba2", "head_dim": 8, "tie_word_embeddings": true, "D_has_hdim": true, '"$small}"
round_trip mamba_ssm tied
grep -q -a lm_head tied-mamba_ssm/model.safetensors || fail "mamba_ssm: the head is missing"
if grep -q -a lm_head tied-back/model.safetensors; then fail "a head that is tied was written"; fi

make linear '{"model_type": "ttt_linear", "num_heads": 2, "tie_word_embeddings": true, '"$small}"
round_trip ttt linear
grep -q -a model.layers.1.seq_modeling_block.ttt_norm_weight linear-ttt/model.safetensors || fail "ttt: a name is missing"
make gated '{"model_type": "ttt_linear", "num_heads": 2, "use_gate": true, "share_qk": true, "conv_size": 3, '"$small}"
round_trip ttt gated
make hidden '{"model_type": "ttt_mlp", "num_heads": 2, "ttt_base_lr": 0.1, "mini_batch_size": 4, "pre_conv": true, '"$small}"
round_trip ttt_mlp hidden
grep -q -a model.layers.1.conv.conv.bias hidden-ttt_mlp/model.safetensors || fail "ttt_mlp: no convolution before the block"
refuses "ttt_layer_type is \"mlp\", expected \"linear\"" "$lm" convert --from ttt hidden-ttt_mlp --output new

make goose '{"model_type": "rwkv7", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256, "fuse_norm": false}'
works "$lm" convert --to rwkv goose --output goose-rwkv
[ ! -e goose-rwkv/config.json ] || fail "rwkv: a config was written"
grep -q -a blocks.1.att.v2 goose-rwkv/model.safetensors || fail "rwkv: blocks.1.att.v2 is missing"
works "$lm" convert --from rwkv goose-rwkv/model.safetensors --output goose-back
cmp -s goose/model.safetensors goose-back/model.safetensors || fail "goose: other weights after rwkv"
works "$lm" eval --model goose --data text
cp out before
works "$lm" eval --model goose-back --data text
cmp -s before out || fail "goose: another loss after rwkv"
make fused '{"model_type": "rwkv7", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 256}'
refuses "fuse_norm is true, expected false" "$lm" convert --to rwkv fused --output new

refuses "the folder is not empty" "$lm" convert --to mamba_ssm mamba --output tied
refuses "expected one of mamba_ssm" "$lm" convert --to other mamba --output new
make comba '{"model_type": "comba", "head_dim": 8, "num_heads": 1, '"$small}"
refuses "model_type is \"comba\", expected mamba2" "$lm" convert --to mamba_ssm comba --output new
mkdir first
cp mamba-mamba_ssm/model.safetensors first
echo '{"d_model": 16, "n_layer": 2, "vocab_size": 256, "ssm_cfg": {}}' >first/config.json
refuses 'expected "Mamba2"' "$lm" convert --from mamba_ssm first --output new
echo '{"d_model": 16, "n_layer": 2, "ssm_cfg": {"layer": "Mamba2"}}' >first/config.json
refuses "vocab_size is missing" "$lm" convert --from mamba_ssm first --output new
[ ! -e new ] || fail "a refused conversion left a folder"

# pickles, by content and by name
printf 'PK\003\004 and the rest of a zip file' >weights
refuses "torch.load('weights'" "$lm" forward --model mamba --input weights --output result
printf '\200\002}q\001. as protocol 2 begins' >old
refuses "torch.load('old'" "$lm" forward --model mamba --input old --output result
mkdir pickled
cp mamba/config.json pickled
cp weights pickled/pytorch_model.bin
refuses "torch.load('pickled/pytorch_model.bin'" "$lm" eval --model pickled --data text

[ $failures = 0 ] || exit 1
