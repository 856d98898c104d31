"""The GPU sizes that can be rented, by vendor."""
