"""The training loop and what it needs: its context and its validation."""
