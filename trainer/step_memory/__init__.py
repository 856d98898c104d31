"""Counts the memory of a training step on the step itself, with neither weights nor a GPU."""
