#!/bin/sh
# usage: tests/installed.sh PREFIX
# What was installed into PREFIX serves a stranger: a program is compiled with nothing but pkg-config's flags and runs,
# and the shared library shows the functions of comba.h and no others.
set -eu
prefix=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

PKG_CONFIG_PATH=$prefix/lib/pkgconfig
export PKG_CONFIG_PATH
version=$(pkg-config --modversion comba)

cat >"$work/five.c" <<'END'
#include <comba.h>
#include <stdio.h>
int main(void) {
  return puts(comba_version()) < 0 || comba_set_threads(1) != COMBA_OK;
}
END
# shellcheck disable=SC2046 # a list of flags
${CC:-cc} -Wall -Wextra -Werror -o "$work/five" "$work/five.c" $(pkg-config --cflags --libs comba)
found=$(LD_LIBRARY_PATH=$prefix/lib "$work/five")
if [ "$found" != "$version" ]; then
  echo "installed.sh: comba_version() is '$found', comba.pc says '$version'" >&2
  exit 1
fi

sed -n 's/^COMBA_API .*\(comba_[a-z0-9_]*\)(.*/\1/p' "$prefix/include/comba.h" | sort >"$work/declared"
nm -D --defined-only "$prefix/lib/libcomba.so" | awk '{ print $3 }' | sort >"$work/exported"
if ! diff "$work/declared" "$work/exported"; then
  echo "installed.sh: comba.h declares (<) and libcomba.so exports (>) different functions" >&2
  exit 1
fi

for program in comba-lm comba-vision; do
  "$prefix/bin/$program" --version | grep -q -F "$version" || {
    echo "installed.sh: $program --version does not say $version" >&2
    exit 1
  }
  for file in share/man/man1/$program.1 share/bash-completion/completions/$program; do
    grep -q -e threads "$prefix/$file" || {
      echo "installed.sh: $file has no option --threads" >&2
      exit 1
    }
  done
done
