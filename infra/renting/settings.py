"""Reads numbers of a provider's settings from the environment; each mistake names its variable."""

from __future__ import annotations

import math


def positive_seconds(name: str, text: str) -> float:
    """Read a number of seconds. Raises `ValueError` for what is none, or not above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        message = f"{name} must be a number of seconds above 0, not {text!r}"
        raise ValueError(message)
    return value


def port_number(name: str, text: str) -> int:
    """Read a port. Raises `ValueError` for what is none."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        message = f"{name} must be a port between 1 and 65535, not {text!r}"
        raise ValueError(message)
    return int(text)
