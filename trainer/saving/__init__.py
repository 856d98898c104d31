"""What survives an interruption: the state, its checkpoints, and when they are written."""
