"""Sets up a machine to train: driver, Python environment, and the checks of both."""
