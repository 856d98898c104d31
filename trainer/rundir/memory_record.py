"""`memory.json` of a run directory: what the longest batch took here, and what was done to fit it.

Whole or absent. A later start on the same machine with the same settings takes it up instead of
measuring again; at home it is held against the plan.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.atomic import RealDisk, replace_file
from trainer.rundir.layout import MEMORY, read_table
from trainer.untrusted import table, whole

STEPS_KEPT_MAX = 100


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """The measured need of the longest pass; bytes are of the device unless they say otherwise."""

    device: str
    limit: str
    """Which limit holds, in words; empty where the system does not say."""
    limit_bytes: int | None
    """What the peak may reach."""
    micro_batch: int
    tokens: int
    """Tokens of the longest pass, with padding."""
    target_tokens: int
    """Of those, the ones that are learnt."""
    allocated_bytes: int
    """The peak of what tensors took; on a CPU, of the whole process."""
    reserved_bytes: int
    """The same with what the allocator kept; on a CPU, what counts against `limit_bytes`."""
    extra_bytes: int
    """What the pass took beyond the loaded model."""
    estimated_bytes: int | None
    """What the formula expects of `reserved_bytes`; None where it does not know the base."""
    host_bytes: int
    """The peak of this process in the host's memory."""
    host_limit_bytes: int | None
    savings: dict[str, Any]
    steps_taken: tuple[str, ...]
    """What was done because memory did not suffice, in order, in words."""
    after_step: int
    """How many steps were done when it was measured."""
    key: str
    """A SHA-256 over the settings and the machine that it belongs to."""

    def write(self, run_dir: Path) -> None:
        """Write the file, whole or not at all; raises `OSError`."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        replace_file(run_dir / MEMORY, text, disk=RealDisk())

    def with_step(self, text: str) -> MemoryRecord:
        """Return the record with one more thing that was done."""
        return replace(self, steps_taken=(*self.steps_taken, text)[-STEPS_KEPT_MAX:])


def read_memory_record(run_dir: Path) -> MemoryRecord | None:
    """Return the record in a run directory, None if there is none that can be used."""
    raw = dict(read_table(run_dir / MEMORY))
    names = set(MemoryRecord.__dataclass_fields__)
    optional = {"limit_bytes", "estimated_bytes", "host_limit_bytes"}
    numbers = {name for name in names if name.endswith(("bytes", "tokens", "_batch", "_step"))}
    steps = raw.get("steps_taken")
    if (
        set(raw) != names
        or not isinstance(steps, list)
        or any(whole(raw[name]) is None for name in numbers - optional)
        or any(raw[name] is not None and whole(raw[name]) is None for name in optional)
        or not all(isinstance(raw[name], str) for name in ("device", "limit", "key"))
    ):
        return None
    return MemoryRecord(
        **{
            **raw,
            "steps_taken": tuple(str(one) for one in steps),
            "savings": dict(table(raw["savings"])),
        }
    )
