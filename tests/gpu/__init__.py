"""One proof for a machine with a CUDA card: the real trainer on real shapes, killed and resumed."""
