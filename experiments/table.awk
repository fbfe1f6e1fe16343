# Paired differences of an experiment's rows. Reads runs.tsv (row, seed, parameters, loss, opening) and the rows' table that
# the variable `rows` names; writes the files that `markdown`, `csv` and `plot` name. A difference is a row's loss minus its
# baseline's of the same seed; the paper's is that of ln(perplexity) on WikiText.

function abs(x) { return x < 0 ? -x : x }

# P(|T| < t) of Student's distribution, n degrees of freedom: a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4).
function student(t, n,    angle, cosine, term, sum, i) {
  angle = atan2(t, sqrt(n))
  cosine = cos(angle)
  term = n % 2 ? cosine : 1
  for (i = n % 2 ? 3 : 2; i <= n; i += 2) {
    sum += term
    term *= cosine * cosine * (i - 1) / i
  }
  return n % 2 ? (angle + sin(angle) * sum) * 2 / PI : sin(angle) * sum
}

# The t with P(|T| < t) = p.
function quantile(p, n,    low, high, middle, i) {
  high = 1
  while (student(high, n) < p) high *= 2
  for (i = 0; i < 60; i++) {
    middle = (low + high) / 2
    if (student(middle, n) < p) low = middle
    else high = middle
  }
  return high
}

# Whether two runs began alike to rounding: then their networks are the same.
function same_opening(a, b,    x, y, count, i) {
  gsub(/[][ ]/, "", a)
  gsub(/[][ ]/, "", b)
  count = split(a, x, ",")
  if (!count || split(b, y, ",") != count) return 0
  for (i = 1; i <= count; i++) if (abs(x[i] - y[i]) > 1e-4 * abs(y[i])) return 0
  return 1
}

function verdict(low, high, paper) {
  if (paper == "") return "the paper is silent"
  if (low == "" || low <= 0 && high >= 0) return "undecided"
  return (low > 0) == (paper > 0) ? "same sign" : "opposite"
}

function number(format, x) { return x == "" ? "" : sprintf(format, x) }

function quoted(text) {
  gsub(/"/, "\"\"", text)
  return "\"" text "\""
}

BEGIN {
  PI = atan2(0, -1)
  print "# " title "\n" > markdown
  print "Loss in nats a token on the validation data, after the last step. Differences are to the baseline's run of the" \
    " same\nseed: mean, standard error, 95 % interval (t). The paper's are of ln(perplexity) on WikiText.\n" > markdown
  print "| row | baseline | parameters | seeds | loss | difference | standard error | 95 % interval | paper: ppl |" \
    " paper: difference | verdict | remark |" > markdown
  print "|---|---|---|---|---|---|---|---|---|---|---|---|" > markdown
  print "block,row,baseline,parameters,seeds,loss,pairs,difference,standard_error,low,high,paper_wiki_ppl," \
    "paper_lambada_ppl,paper_commonsense,paper_recall,paper_difference,verdict,remark" > csv
  printf "" > plot
}

NF >= 4 {
  loss[$1, $2] = $4
  parameters[$1] = $3
  opening[$1, $2] = $5
  runs[$1]++
  total[$1] += $4
  if (!($2 in known)) { known[$2]; seeds[++seed_count] = $2 }
}

END {
  while ((getline line < rows) > 0) {
    split(line, cell, "\t")
    if (!header++) {
      for (i in cell) at[cell[i]] = i
      continue
    }
    row = cell[at["row"]]
    perplexity[row] = cell[at["wiki_ppl"]]
    parent[row] = cell[at["baseline"]]
    write_row(row, cell[at["baseline"]])
  }
}

function write_row(row, baseline,    n, i, d, sum, square, alike, mean, error, half, low, high, paper, says, mark) {
  for (i = 1; i <= seed_count; i++) {
    if (!((row, seeds[i]) in loss) || !((baseline, seeds[i]) in loss)) continue
    difference[++n] = loss[row, seeds[i]] - loss[baseline, seeds[i]]
    sum += difference[n]
    alike += same_opening(opening[row, seeds[i]], opening[baseline, seeds[i]])
  }
  mean = error = low = high = paper = ""
  if (n) mean = sum / n
  if (n > 1) {
    for (i = 1; i <= n; i++) square += (difference[i] - mean) ^ 2
    error = sqrt(square / (n - 1) / n)
    half = quantile(0.95, n - 1) * error
    low = mean - half
    high = mean + half
  }
  mark = cell[at["mark"]]
  if (mark == "-" && perplexity[row] + 0 && baseline in perplexity) paper = paper_difference(row, baseline)
  if (!runs[row]) says = "not run"
  else if (baseline == "-") says = "baseline"
  else if (!n) says = "baseline not run"
  else if (alike == n) says = "inert"
  else if (mark != "-") says = mark
  else says = verdict(low, high, paper)
  printf "| %s | %s | %s | %d | %s | %s | %s | %s | %s | %s | %s | %s |\n", row, baseline, parameters[row], runs[row],
    runs[row] ? sprintf("%.4f", total[row] / runs[row]) : "", number("%+.4f", mean), number("%.4f", error),
    low == "" ? "" : sprintf("%+.4f to %+.4f", low, high), perplexity[row], number("%+.4f", paper), says,
    cell[at["remark"]] > markdown
  printf "%s,%s,%s,%s,%d,%s,%d,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n", cell[at["block"]], row, baseline, parameters[row],
    runs[row], runs[row] ? sprintf("%.6f", total[row] / runs[row]) : "", n, number("%.6f", mean), number("%.6f", error),
    number("%.6f", low), number("%.6f", high), cell[at["wiki_ppl"]], cell[at["lambada_ppl"]], cell[at["commonsense"]],
    cell[at["recall"]], number("%.6f", paper), quoted(says), quoted(cell[at["remark"]]) > csv
  if (n)
    printf "%s\t%.6f\t%.6f\t%.6f\t%s\n", row, mean, low == "" ? mean : low, high == "" ? mean : high,
      paper == "" ? "NaN" : sprintf("%.6f", paper) > plot
}

# A baseline without a number of its own stands for its own baseline.
function paper_difference(row, baseline) {
  while (!(perplexity[baseline] + 0) && parent[baseline] in perplexity) baseline = parent[baseline]
  return perplexity[baseline] + 0 ? log(perplexity[row] / perplexity[baseline]) : ""
}
