"""Decides whether this machine stores the quantised base of a job, and under which name."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.adapters.stored_base import StoredBase, folder_name, store_folder
from trainer.adapters.stored_files import BaseFolder
from trainer.atomic import RealDisk
from trainer.base_config import stored_quantisation
from trainer.device.host_memory import free_memory
from trainer.job.context import JobContext
from trainer.job.prepare import PreparedInputs
from trainer.method_table import Quant

COMMIT = re.compile(r"[0-9a-f]{40}")
COMPUTES = ("device", "gpu", "cuda", "cpu")
"""Of the hardware: quantisers differ by it, and nobody proved that their bits are the same."""


def machine_folder() -> BaseFolder:
    """Return the folder of this machine, on its real disk."""
    return BaseFolder(
        root=store_folder(os.environ),
        disk=RealDisk(),
        free_bytes=lambda path: shutil.disk_usage(path).free,
        memory_bytes=_free_memory_bytes,
    )


def is_at_hand(job: JobContext, prepared: PreparedInputs, folder: BaseFolder | None = None) -> bool:
    """Tell whether the base is on this machine's disk as it is loaded: no rank waits for another.

    It is stored quantised, or is read from local files every time.
    """
    facts = base_facts(job, prepared)
    if facts is None:
        return prepared.source.local
    name = folder_name(Path(prepared.source.name).name, facts)
    return ((folder or machine_folder()).root / name).is_dir()


def _free_memory_bytes() -> int | None:
    found = free_memory()
    return None if found is None else found.bytes


@contextmanager
def storing(
    job: JobContext, prepared: PreparedInputs, folder: BaseFolder | None = None
) -> Iterator[StoredBase | None]:
    """Yield the place of the job's base in the store, None if it has none there.

    What is being written at the end of the block is written whole; if the block is left by an
    error, as it is by a notice, it is given up and nothing of it is left.
    """
    facts = base_facts(job, prepared)
    if facts is None:
        yield None
        return
    place = folder or machine_folder()
    stored = StoredBase(
        folder=place if job.writers.save else replace(place, size_least=sys.maxsize),
        name=folder_name(Path(prepared.source.name).name, facts),
        on_message=job.on_message,
    )
    stored.begin_reading()
    try:
        yield stored
        stored.wait()
    finally:
        stored.close()


def base_facts(job: JobContext, prepared: PreparedInputs) -> dict[str, Any] | None:
    """Return all that the bits of the quantised base depend on; None if it is not to be stored.

    A base that is not quantised, or is so in its own files, is read as fast from those. One of a
    hub is stored only under a commit: what a branch names may change.
    """
    method, fingerprint = job.config.method, prepared.fingerprint
    identity = str(fingerprint["base"]["base.model"])
    if method.storage is Quant.NONE or stored_quantisation(prepared.model_config) is not None:
        return None
    if not prepared.source.local and COMMIT.fullmatch(identity) is None:
        return None
    return {
        "base": identity,
        "trust_remote_code": prepared.source.trust_remote_code,
        "storage": str(method.storage),
        "double_quant": method.double_quant,
        "compute": str(prepared.precision.compute),
        "hardware": {key: fingerprint["hardware"].get(key) for key in COMPUTES},
        "versions": fingerprint["versions"],
    }
