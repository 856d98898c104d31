"""What a job loads before anything is computed, so that all that can be wrong is wrong early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from trainer import model as models
from trainer.data.examples import Examples
from trainer.device.precision import Precision
from trainer.rundir.fingerprint import Facts
from trainer.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class PreparedInputs:
    """What is loaded before anything is computed."""

    source: models.Source
    tokenizer: Any
    rows: Examples
    held_out: Examples | None  # read only if they are looked at while training
    schedule: Schedule
    device: torch.device
    precision: Precision
    fingerprint: Facts
    model_config: dict[str, Any]  # the base's config.json
