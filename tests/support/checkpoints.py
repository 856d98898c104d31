"""Checkpoints that are whole, or not in one chosen way, made without a training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from trainer.atomic import Disk, RealDisk
from trainer.saving.checkpoint import Snapshot, Store
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


LIMIT = 1 << 20


def snapshot(step: int) -> Snapshot:
    """Return a snapshot whose every tensor tells its step."""
    return Snapshot(
        step=step,
        adapter={"a": torch.full((3, 5), float(step)), "b": torch.zeros(2, dtype=torch.bfloat16)},
        optimizer={"a/exp_avg": torch.full((3, 5), step / 3), "a/step": torch.tensor(float(step))},
        state={"counters": {"step": step}},
        log=b'{"step": 1}\n' * step,
        fingerprint={"config": {"x": 1}},
    )


def store(root: Path, disk: Disk | None = None) -> Store:
    """Return a store that keeps two checkpoints."""
    return Store(root, keep=2, disk=disk or RealDisk())


def newest(root: Path) -> int | None:
    """Return the step that a fresh process would resume from."""
    fresh = store(root)
    fresh.sweep()
    found = fresh.load_newest(tensor_bytes_max=LIMIT, on_message=lambda _text: None)
    if found is None:
        return None
    assert torch.equal(found.adapter["a"], torch.full((3, 5), float(found.step)))
    return found.step


def flip(path: Path, at: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(bytes(data))
