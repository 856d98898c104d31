"""Makes a machine trainable: driver, Python environment, and the checks of both."""
