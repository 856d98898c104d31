"""What every rented machine shares, whoever rents it out: knows no cloud, and imports no SDK."""
