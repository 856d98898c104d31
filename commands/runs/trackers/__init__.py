"""Sends what a run logged to trackers, from home: no machine has a key, or knows of them."""
