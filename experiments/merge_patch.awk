# Merges flat JSON objects, one a line: a later line's fields replace an earlier one's, and null takes a field away (RFC
# 7396). Values are strings, numbers and booleans; anything else is an error. Prints one line.
{
  rest = $0
  sub(/^[ \t]*{[ \t]*/, "", rest)
  while (rest !~ /^}[ \t]*$/) {
    if (!match(rest, /^"[^"\\]*"[ \t]*:[ \t]*/)) { failed = 1; exit }
    key = substr(rest, 1, RLENGTH)
    sub(/[ \t]*:[ \t]*$/, "", key)
    rest = substr(rest, RLENGTH + 1)
    if (!match(rest, /^("[^"\\]*"|true|false|null|-?[0-9][0-9.eE+-]*)/)) { failed = 1; exit }
    if (!(key in value)) order[++count] = key
    value[key] = substr(rest, 1, RLENGTH)
    rest = substr(rest, RLENGTH + 1)
    if (!sub(/^[ \t]*,[ \t]*/, "", rest)) sub(/^[ \t]+/, "", rest)
    else if (rest ~ /^}/) { failed = 1; exit }
  }
}
END {
  if (failed) {
    print "not a flat JSON object: " $0 > "/dev/stderr"
    exit 1
  }
  text = ""
  for (i = 1; i <= count; i++)
    if (value[order[i]] != "null") text = text (text == "" ? "" : ", ") order[i] ": " value[order[i]]
  print "{" text "}"
}
