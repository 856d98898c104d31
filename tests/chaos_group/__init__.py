"""Kills ranks of real trainings by several processes at random moments: no bit may differ."""
