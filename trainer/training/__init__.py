"""The training loop with its context, its objective and its validation."""
