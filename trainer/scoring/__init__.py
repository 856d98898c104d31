"""How good a model is on held-out rows, and what it must beat to mean anything."""
