"""The inside of a rented machine, played: its driver, its packages, its boots, its way out.

Light on purpose, and without imports of its own: every played program begins here.
"""
