"""Compares two runs of one job: the log of every step and the tensors must be the same, to the bit.

Only files are read. Times differ, and are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SAME = ("adapter/adapter_model.safetensors",)
MEASURED = ("seconds", "gpu_memory_bytes", "gpu_use")
DIFFERENCES_MAX = 12
IN_CHECKPOINT = ("adapter.safetensors", "optimizer.safetensors")


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics log without what is measured, of whole lines only."""
    try:
        text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    records = [json.loads(line) for line in text.split("\n")[:-1]]
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in records]


def last_step(run_dir: Path) -> int:
    """Return the last step that the log tells of, 0 if none; a log being written tells less."""
    try:
        records = read_log(run_dir)
    except ValueError:
        return 0
    return int(records[-1]["step"]) if records else 0


def differences(one: Path, other: Path, *, steps: int) -> list[str]:
    """Say how a run that ended differs from an undisturbed `one`, the first difference first.

    At most `DIFFERENCES_MAX` are listed. What both lack is a difference too: nothing was compared
    then.
    """
    before, after = read_log(one), read_log(other)
    if [record.get("step") for record in before] != list(range(1, steps + 1)):
        return [f"the undisturbed run has a log of {len(before)} lines, not of steps 1 to {steps}"]
    differing = [
        f"step {was['step']}: {key} is {now.get(key)}, undisturbed {was.get(key)}"
        for was, now in zip(before, after, strict=False)
        for key in sorted({*was, *now})
        if was.get(key) != now.get(key)
    ]
    if len(before) != len(after):
        differing.append(f"the log has {len(after)} lines, undisturbed {len(before)}")
    checkpoint = f"checkpoints/step-{steps:08d}"
    for name in (*SAME, *(f"{checkpoint}/{name}" for name in IN_CHECKPOINT)):
        problem = _files_differ(one / name, other / name)
        if problem:
            differing.append(f"{name} {problem}")
    return differing[:DIFFERENCES_MAX]


def _files_differ(one: Path, other: Path) -> str | None:
    missing = [path for path in (one, other) if not path.is_file()]
    if missing:
        return f"is missing in {missing[0].parent}"
    was, now = one.read_bytes(), other.read_bytes()
    if was == now:
        return None
    count = sum(a != b for a, b in zip(was, now, strict=False)) + abs(len(was) - len(now))
    return f"differs in {count} of {len(was)} bytes"
