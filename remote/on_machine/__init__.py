"""Scripts that are copied to the machine and run there; the standard library only."""
