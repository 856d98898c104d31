"""Two runs side by side: their rows matched, their scores paired, their configs compared."""
