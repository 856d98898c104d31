"""One host over SSH: knows no cloud and no training."""
