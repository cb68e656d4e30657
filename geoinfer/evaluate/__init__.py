"""How good predictions are: metrics with intervals, tables, maps and a report to look at."""
