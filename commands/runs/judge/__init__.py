"""Lets a model of the user's compare answers: base against tuned, tuned against the right one."""
