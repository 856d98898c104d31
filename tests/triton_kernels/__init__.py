"""What can be proved of Triton kernels without a card: what they compute, and that they compile."""
