"""The door: parse the command line, wire the rooms, and map every error to its exit code."""
