"""The list of all benchmarks, in the order in which they are run."""

from __future__ import annotations

from bench.measure import Measure
from bench.startup import MEASURES as STARTUP

MEASURES: tuple[Measure, ...] = (*STARTUP,)
"""A new group has a module of its own with its `MEASURES`, and its line here."""
