"""Measures what qft promises about speed against other tools, in one run: `python tests/bench`."""
