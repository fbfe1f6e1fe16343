#!/bin/sh
# The drivers from the outside: a few rows, one step; then again, which must train nothing. Run from the build folder.
set -u
here=$(cd "$(dirname "$0")" && pwd)
build=$(pwd)
COMBA_LM=${COMBA_LM:-$build/lm/comba-lm}
COMBA_VISION=${COMBA_VISION:-$build/vision/comba-vision}
MAKE_RECALL=${MAKE_RECALL:-$build/datasets/make-recall}
OMP_WAIT_POLICY=passive
export COMBA_LM COMBA_VISION MAKE_RECALL OMP_WAIT_POLICY
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

fail() {
  echo "smoke.sh: $*" >&2
  sed 's/^/    /' out err >&2
  exit 1
}

awk 'BEGIN { for (i = 0; i < 300; i++) printf "%d bottles of ink, %d sheets; ", i * 7 % 31, i * i % 97 }' >text
run="$here/ablation/run tiny --steps 1 --seeds 1\ 2 --threads 1 --data text --validation-data text"
eval "$run" --rows '"full iplr"' >out 2>err || fail "a run fails"
results=results/ablation/tiny
for file in $results/results.csv $results/full/seed-1/result.json $results/iplr/seed-2/result.json; do
  [ -s $file ] || fail "$file is missing or empty"
done
grep -q '^paper,iplr,full,[0-9]*,2,[0-9.]*,2,[-0-9.]*,[0-9.]*,' $results/results.csv || fail "no paired difference"
grep -q '^paper,no-b,.*"not run"' $results/results.csv || fail "an absent row is not marked"
eval "$run" --rows '"full alpha-one"' >out 2>err || fail "a row with a mark fails"
grep -q '^paper,alpha-one,full,.*,25.11,.*,,"the paper is silent"' $results/results.csv ||
  fail "a row that stands in for what the paper does not say has a verdict"
eval "$run" --rows '"full iplr"' >out 2>err || fail "a second run fails"
! grep -q '^ablation: .*/seed-' err || fail "a finished run was repeated"
eval "$run" --rows nonsense >out 2>err
[ $? = 2 ] || fail "expected exit code 2 for an unknown row"

# ---- mixers: language models, then pictures; the learning rates, then one seed ----

mkdir shakespeare fashion
cp text shakespeare/train.txt
head -c 1000 text >shakespeare/test.txt
idx() { # NAME COUNT: pictures of 28 x 28 pixels in ten classes
  # shellcheck disable=SC2059 # octal escapes
  {
    printf "\\0\\0\\10\\3\\0\\0\\0\\$(printf %o "$2")\\0\\0\\0\\34\\0\\0\\0\\34"
    while cat text; do :; done 2>/dev/null | head -c $(($2 * 784))
  } >"fashion/$1-images-idx3-ubyte"
  # shellcheck disable=SC2059
  {
    printf "\\0\\0\\10\\1\\0\\0\\0\\$(printf %o "$2")"
    printf "$(awk -v n="$2" 'BEGIN { for (i = 0; i < n; i++) printf "\\%o", i % 10 }')"
  } >"fashion/$1-labels-idx1-ubyte"
}
idx train 120
idx t10k 20
mixers() { # PRESET DATA
  "$here/mixers/run" "$1" --steps 1 --seeds 1 --threads 1 --jobs 2 --data "$2" --rows "gla comba" >out 2>err
}
mixers tiny shakespeare || fail "mixers tiny fails"
results=results/mixers/tiny
[ "$(grep -c '^[a-z]*,82[0-9]*,[0-9]*,no,' $results/results.csv)" = 2 ] || fail "not two mixers of 0.83 M parameters"
grep -q '^retnet,.*,$' $results/results.csv || fail "an absent mixer has a result"
mixers tiny shakespeare || fail "mixers tiny fails when it is done"
! grep -q -e '^mixers: [a-z]*/rate' -e '^mixers: [a-z]*/seed' err || fail "a finished run was repeated"
mixers fashion-mnist fashion || fail "mixers fashion-mnist fails"
grep -q '^comba,31[0-9]*,' results/mixers/fashion-mnist/results.csv || fail "no classifier of 0.32 M parameters"

# ---- recall ----

"$here/recall/run" tiny --steps 1 --threads 1 --rows comba --rates 4e-3 >out 2>err || fail "recall tiny fails"
grep -q '^comba,64,[-0-9e]*,no,64,16,[0-9]' results/recall/tiny/results.csv || fail "no accuracy of recall"
