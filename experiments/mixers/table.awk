# One line a mixer. Reads lines "row NAME RATE EDGE", each followed by its "run SEED SCORE PARAMETERS STATE GROWS RATE"; writes the
# files that the variables markdown, csv and plot name. `score` names the measure, `better` is 1 if more is better, else -1; `work` is a
# sentence on what it took.

function finish(    i, mean, square, deviation, note) {
  if (name == "") return
  mean = deviation = ""
  if (n) {
    for (i = 1; i <= n; i++) mean += value[i] / n
    for (i = 1; i <= n; i++) square += (value[i] - mean) ^ 2
    if (n > 1) deviation = sqrt(square / (n - 1))
  }
  note = n ? (edge ? "the rate is at the edge" : "") : "not run"
  printf "| %s | %s | %s%s | %s | %s | %s | %s | %s | %s |\n", name, parameters, state, grows == "yes" ? " a token" : "", speed,
    rate, shown(mean), shown(deviation), list, note > markdown
  printf "%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n", name, parameters, state, grows, speed, rate, edge ? "yes" : "no", shown(mean),
    shown(deviation), list > csv
  if (n) lines++
  for (i = 1; i <= n; i++) printf "%d\t%s\t%.5f\t%.5f\n", lines, name, mean, value[i] > plot
}

function shown(x) { return x == "" ? "" : sprintf("%.4f", x) }

BEGIN {
  print "# " title "\n" > markdown
  print "Parameters are without embeddings; bytes of state of one sequence (all layers); tokens a second in training; " score \
    " on\nthe test data after the last step, mean and standard deviation over seeds, then seed by seed.\n\n" work "\n" > markdown
  print "| mixer | parameters | state bytes | tokens a second | learning rate | " score " | deviation | seeds | remark |" > markdown
  print "|---|---|---|---|---|---|---|---|---|" > markdown
  print "mixer,parameters,state_bytes,state_grows,tokens_a_second,learning_rate,edge," score ",deviation,seeds" > csv
  printf "" > plot
}

$1 == "row" {
  finish()
  name = $2; rate = $3; edge = $4
  n = 0
  parameters = state = grows = speed = list = ""
}

$1 == "run" {
  value[++n] = $3
  parameters = $4; state = $5; grows = $6; speed = $7
  list = list (n > 1 ? " " : "") shown($3)
}

END { finish() }
