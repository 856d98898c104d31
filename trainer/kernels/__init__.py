"""Faster ways to compute parts of a training step, each chosen by what the card and the base are.

`choose.py` decides which of them a run uses; `kernel_set.py` has what is chosen, and switches it on
around the passes of training, never around scoring or answers.
"""
