"""One file per command of `qft`, and the wiring that hands the rooms to each other."""
