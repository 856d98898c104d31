"""The commands of `qft`, one file each: options, help, examples, and the work.

`runs/` is what the commands share about runs: the config, the folder on this computer, and the way
to a goal (begin at `runs/run_to_goal.py`). `ui/` is what they share about people: options, output,
the consoles, errors and exit codes. `cli.py` lists the commands and imports the one that is run.
"""
