"""The run directory: its layout, the fingerprint of a run, its status files."""
