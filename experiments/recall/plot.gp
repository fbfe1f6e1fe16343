# Above, a heat map of accuracy: a line a mixer and width, a column a test set. Below, the same as curves. Columns of `data`: mixer,
# width, set, accuracy, number of the set; `picture` names the file.
set terminal svg noenhanced size 820,960 background "white"
set output picture
set datafile separator "\t"
names = system("cut -f1,2 '".data."' | tr '\\t' '@' | awk '!seen[$0]++' | tr '\\n' ' '")
sets = system("sort -n -k5 -t'\t' '".data."' | cut -f3 | awk '!seen[$0]++' | tr '\\n' ' '")
place(name) = sum [i = 1:words(names)] (word(names, i) eq name ? i : 0)
label(name) = name[1:strstrt(name, "@") - 1]." ".name[strstrt(name, "@") + 1:*]
set multiplot layout 2,1
set xrange [0.5 : words(sets) + 0.5]
set yrange [words(names) + 0.5 : 0.5]
set cbrange [0:1]
set palette gray negative
set xtics ()
set ytics ()
do for [i = 1:words(sets)] { set xtics add (word(sets, i) i) }
do for [i = 1:words(names)] { set ytics add (label(word(names, i)) i) }
set cblabel "accuracy"
unset key
y(mixer, width) = place(mixer."@".width)
plot data using 5:(y(strcol(1), strcol(2))):(0.5):(0.5):4 with boxxyerror fs solid lc palette, \
  data using 5:(y(strcol(1), strcol(2))):(sprintf("%.2f", $4)) with labels font ",9" tc rgb "#d00000"
set yrange [-0.02:1.02]
set ytics autofreq
set ylabel "accuracy"
set xlabel "tokens/pairs"
set grid y
set key outside right
plot for [i = 1:words(names)] data \
  using (y(strcol(1), strcol(2)) == i ? $5 : NaN):4 with linespoints title label(word(names, i))
unset multiplot
