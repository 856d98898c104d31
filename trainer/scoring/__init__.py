"""Scores a model on held-out rows, beside the baselines that it must beat."""
