"""A project whose run trains on several cards or machines, and its settings alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from commands.runs.config import LoadedConfig, load
from support.memory_points import llama
from trainer.config import TrainerConfig

SEVEN = (4096, 11008, 32, 32, 32, 32000)
SEVENTY = (8192, 28672, 80, 64, 8, 32000)


def project(folder: Path, *, base: tuple[int, ...] = SEVEN, **tables: Any) -> LoadedConfig:
    """Write a run.yaml on a base of these sizes, and rows for it."""
    folder.mkdir(exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(llama(*base)))
    rows = [json.dumps({"text": f"row {n} " * 20, "label": "good"}) for n in range(200)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    config = {
        "name": "cards",
        "model": {"id": "model"},
        "data": {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"},
        "train": {"steps": 50, "batch_size": 16, "max_length": 512},
        **tables,
    }
    config["vm"] = {"provider": "aws", "gpu": "A10G", "max_price": 20, **tables.get("vm", {})}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return load(folder / "run.yaml")


def trainer_config(**train: Any) -> TrainerConfig:
    """A QLoRA training of rows of 512 tokens."""
    tables = {
        "model": {"id": "m"},
        "data": {"train": "t.jsonl", "prompt": "{a}", "completion": "{b}"},
        "train": {"steps": 10, "batch_size": 16, "max_length": 512, **train},
    }
    return TrainerConfig.model_validate(tables)
