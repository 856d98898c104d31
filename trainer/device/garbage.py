"""Lets imports and loading run without searches for garbage, which find none there."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MODULES_MANY = 100


@contextmanager
def collection_paused() -> Iterator[None]:
    """While inside, Python does not search for reference cycles.

    Imports make a million objects that stay, and searching them again and again takes a fifth of
    their time. If many modules were imported inside, all objects of that moment are left out of
    later searches, too; otherwise nothing is, since that would also keep what is garbage.
    """
    before, enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - before >= MODULES_MANY:
            gc.freeze()
        if enabled:
            gc.enable()
