"""Rents spot machines on AWS (EC2). Only `sdk.py` imports the SDK, and only when first asked."""
