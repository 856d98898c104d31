"""What fits a GPU, before it is rented and on it, and the arithmetic it gets."""
