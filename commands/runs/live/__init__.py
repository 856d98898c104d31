"""Serves the report of a run on loopback while it goes on, and sends what changes of it."""
