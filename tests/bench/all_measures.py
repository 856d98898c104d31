"""The list of all benchmarks, in the order in which they are run."""

from __future__ import annotations

from bench.data import MEASURES as DATA
from bench.eviction import MEASURES as EVICTION
from bench.group import MEASURES as GROUP
from bench.measure import Measure
from bench.startup import MEASURES as STARTUP
from bench.sync import MEASURES as SYNC
from bench.training import MEASURES as TRAINING

MEASURES: tuple[Measure, ...] = (*TRAINING, *STARTUP, *EVICTION, *DATA, *SYNC, *GROUP)
"""A new group has a module of its own with its `MEASURES`, and its line here."""
