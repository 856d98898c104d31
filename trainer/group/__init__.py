"""Several processes that do one training together, one for each card, with the bits of one."""
