"""What people look at: the rows before money is spent, the run after it."""
