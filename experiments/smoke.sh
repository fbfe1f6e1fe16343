#!/bin/sh
# A driver from the outside: two rows, two seeds, one step; then again, which must train nothing. Run from the build folder.
set -u
here=$(cd "$(dirname "$0")" && pwd)
COMBA_LM=${COMBA_LM:-$(pwd)/lm/comba-lm}
OMP_WAIT_POLICY=passive
export COMBA_LM OMP_WAIT_POLICY
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
! grep -q ', seed' err || fail "a finished run was repeated"
eval "$run" --rows nonsense >out 2>err
[ $? = 2 ] || fail "expected exit code 2 for an unknown row"
