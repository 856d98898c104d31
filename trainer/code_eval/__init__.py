"""Runs untrusted programs, the answers of a model, in a sandbox that is proved before the first."""
