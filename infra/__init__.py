"""Machines and money: knows no SSH and no torch."""
