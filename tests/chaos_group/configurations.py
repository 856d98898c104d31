"""The six configurations that are killed: small bases, uneven shares for two and three ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from support import models, tiny

STEPS = 40
TRAIN: Mapping[str, Any] = {"steps": STEPS, "batch_size": 10, "micro_batch": 2, "lr": 1e-2}
"""Five micro-batches a step: two ranks do three and two of them, three do two, two and one."""
METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "qlora": {"kind": "qlora", "quant": "nf4"},
        "qdora": {"kind": "qdora", "quant": "nf4"},
        "qdylora": {"kind": "qdylora", "quant": "nf4"},
        "nola": {"kind": "nola", "bases": 16},
        "encoder-decoder": {"kind": "qlora", "quant": "nf4", "partly_quantised": True},
        "8-bit optimizer": {"kind": "qlora", "quant": "nf4", "optimizer": "adamw8bit"},
    }
)
"""The table `method` of each, beside r, alpha and a dropout of 0.1."""


def make_config(name: str, folder: Path) -> dict[str, Any]:
    """Write base and rows into `folder`, if they are not there, and return the config."""
    make: Callable[[Path], object] = models.t5 if name == "encoder-decoder" else tiny.make_model
    model = folder / ("t5" if make is models.t5 else "llama")
    if not model.exists():
        make(model)
    train = tiny.make_rows(folder / "train.jsonl", 24)
    held_out = tiny.make_rows(folder / "eval.jsonl", 9)
    return tiny.make_config(
        model,
        train,
        method=METHODS[name],
        data={"eval": str(held_out)},
        eval={"kind": "label", "labels": list(tiny.MOODS)},
        train={**TRAIN, "samples": 0},
        checkpoint={"every": 4},
    )
