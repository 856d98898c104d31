"""Scripts that are uploaded to the machine and run there; standard library only."""
