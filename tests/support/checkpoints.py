"""Checkpoints that are whole, or not in one chosen way, made without a training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from trainer.saving.manifest import (
    ADAPTER,
    FINGERPRINT,
    LOG,
    OPTIMIZER,
    STATE,
    FileFact,
    Manifest,
    directory_name,
)


def make_checkpoint(
    root: Path, step: int, *, named: int | None = None, state: int | None = None, weight: int = 0
) -> Path:
    """Write the checkpoint of `step` below `root`.

    `named` is the step in the directory's name, `state` the one that its state tells, `weight` a
    number that makes its tensors different.
    """
    header = json.dumps({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + weight.to_bytes(8, "little")
    lines = [json.dumps({"step": number, "loss": 1.0}) for number in range(1, step + 1)]
    counted = step if state is None else state
    contents = {
        ADAPTER: tensors,
        OPTIMIZER: tensors,
        STATE: json.dumps({"counters": {"step": counted}, "optimizer": {}}).encode(),
        LOG: "".join(f"{line}\n" for line in lines).encode(),
        FINGERPRINT: b"{}",
    }
    folder = root / directory_name(step if named is None else named)
    folder.mkdir(parents=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    facts = {
        name: FileFact(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in contents.items()
    }
    (folder / "manifest.json").write_bytes(Manifest(step=step, files=facts).to_bytes())
    return folder
