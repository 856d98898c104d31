"""Uses a finished run: generates, exports a plain adapter, merges, publishes on a hub."""
