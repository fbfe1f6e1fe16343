# A line a mixer: its mean as a cross, its seeds as circles. Columns of `data`: number, name, mean, one seed's score; `picture` names
# the file.
set terminal svg noenhanced size 720,520 background "white"
set output picture
set datafile separator "\t"
stats data using 1 nooutput
set yrange [STATS_max + 0.5 : 0.5]
set grid x
unset key
plot data using 3:1:ytic(2) with points pt 2 lc "black", data using 4:1 with points pt 6 lc "gray"
