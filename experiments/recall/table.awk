# Accuracy by row, width and test set, at the learning rate that is best on the validation sets. Reads lines of row, width, rate,
# kind, length, pairs, accuracy and the rows' table that the variable `rows` names; writes the files that markdown, csv and plot
# name. `rates` are those that were to be tried.

function shown(x) { return x == "" ? "" : sprintf("%.1f", 100 * x) }

{
  key = $1 SUBSEP $2 SUBSEP $3
  if (!(($1, $2) in seen)) { seen[$1, $2]; widths[$1] = widths[$1] " " $2 }
  if ($4 == "validation") {
    if (!((key) in count)) tried[$1, $2] = tried[$1, $2] " " $3
    validation[key] += $7
    count[key]++
  } else {
    set = $5 "/" $6
    if (!(set in known)) { known[set]; sets[++set_count] = set }
    test[key, set] += $7
    tests[key, set]++
  }
}

# Orders the sets by length, then by pairs.
function order_sets(    i, j, moved, a, b) {
  for (i = 2; i <= set_count; i++) {
    moved = sets[i]
    split(moved, a, "/")
    for (j = i - 1; j >= 1; j--) {
      split(sets[j], b, "/")
      if (b[1] + 0 < a[1] + 0 || (b[1] == a[1] && b[2] + 0 < a[2] + 0)) break
      sets[j + 1] = sets[j]
    }
    sets[j + 1] = moved
  }
}

function best_rate(row, width,    n, i, list, key, mean, best, chosen) {
  n = split(tried[row, width], list, " ")
  best = -1
  for (i = 1; i <= n; i++) {
    key = row SUBSEP width SUBSEP list[i]
    mean = validation[key] / count[key]
    if (mean > best) { best = mean; chosen = list[i] }
  }
  return chosen
}

END {
  order_sets()
  print "# " title "\n" > markdown
  print "Accuracy at the answers in per cent, by tokens/pairs of the test examples, mean over seeds; at the learning rate that is" \
    "\nbest on validation examples.\n" > markdown
  line = "| mixer | width | learning rate |"
  rule = "|---|---|---|"
  for (i = 1; i <= set_count; i++) { line = line " " sets[i] " |"; rule = rule "---|" }
  print line " remark |" > markdown
  print rule "---|" > markdown
  print "mixer,width,learning_rate,edge,length,pairs,accuracy" > csv
  printf "" > plot
  rate_count = split(rates, rate_list, " ")
  while ((getline line < rows) > 0) {
    split(line, cell, "\t")
    if (!header++) continue
    row = cell[2]
    if (!(row in widths)) { printf "| %s | | | not run |\n", row > markdown; continue }
    n = split(widths[row], list, " ")
    for (w = 1; w <= n; w++) write_row(row, list[w])
  }
}

function write_row(row, width,    rate, edge, i, key, accuracy, size) {
  rate = best_rate(row, width)
  edge = rate_count > 2 && (rate == rate_list[1] || rate == rate_list[rate_count])
  printf "| %s | %s | %s |", row, width, rate > markdown
  for (i = 1; i <= set_count; i++) {
    key = row SUBSEP width SUBSEP rate
    accuracy = tests[key, sets[i]] ? test[key, sets[i]] / tests[key, sets[i]] : ""
    printf " %s |", shown(accuracy) > markdown
    split(sets[i], size, "/")
    printf "%s,%s,%s,%s,%s,%s,%s\n", row, width, rate, edge ? "yes" : "no", size[1], size[2], accuracy > csv
    if (accuracy != "") printf "%s\t%s\t%s\t%.4f\t%d\n", row, width, sets[i], accuracy, i > plot
  }
  printf " %s |\n", edge ? "the rate is at the edge" : "" > markdown
}
