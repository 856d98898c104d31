"""Asks the instance-metadata service of a vendor whether the machine is about to be taken away."""
