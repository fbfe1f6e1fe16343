# Differences with their 95 % intervals beside the paper's, one line a row. `data` and `picture` name the files.
set terminal svg noenhanced size 960,480 background "white"
set output picture
set datafile separator "\t"
set multiplot layout 1,2
stats data using 2 nooutput
set yrange [STATS_records - 0.5 : -0.5]
set xzeroaxis
set arrow from 0, graph 0 to 0, graph 1 nohead lc "gray"
set grid x
unset key
set tmargin at screen 0.96
set bmargin at screen 0.18
set lmargin at screen 0.24
set rmargin at screen 0.62
set xlabel "loss minus the baseline's, nats a token"
plot data using 2:0:3:4:ytic(1) with xerrorbars pt 7 lc "black"
set lmargin at screen 0.66
set rmargin at screen 0.97
set format y ""
set xtics rotate by -45
set xlabel "the paper's, of ln(WikiText ppl)"
plot data using 5:0 with points pt 7 lc "black"
unset multiplot
