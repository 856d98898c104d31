"""The closed formula of memory agrees with the counted step of the trainer itself."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from support.counted_steps import REQUESTS, counted

from trainer.config import PrecisionChoice
from trainer.device.shapes import read_shape
from trainer.estimate.memory import estimate
from trainer.estimate.setup import TrainingSetup
from trainer.method_table import MethodTable

COUNTED = counted()


def setup_for(request: dict[str, Any], micro_batch: int) -> TrainingSetup:
    """The setup of a counted step."""
    method = MethodTable.model_validate(request["method"])
    capability = request["capability"]
    precision = PrecisionChoice.FP32
    if capability is not None:
        new = tuple(capability) >= (8, 0)
        precision = PrecisionChoice.BF16 if new else PrecisionChoice.FP16
    return TrainingSetup(
        tokens=request["tokens"],
        micro_batch=micro_batch,
        batch_size=request["train"]["batch_size"],
        quant=method.storage,
        double_quant=method.double_quant,
        r=method.r,
        targets=method.target_names,
        dropout=method.dropout > 0,
        optimizer=method.optimizer,
        precision=precision,
        checkpointing=request["train"]["gradient_checkpointing"],
        loss_tokens=request["loss_tokens"],
        dora=method.kind.dora,
    )


def off(name: str) -> list[float]:
    """Estimated over counted, minus 1, of each size of a pass."""
    request = REQUESTS[name]
    shape = read_shape(request["config"])
    return [
        estimate(shape, setup_for(request, one["micro_batch"])).allocated / one["peak"] - 1
        for one in COUNTED[name]["passes"]
    ]


@pytest.mark.parametrize("name", COUNTED)
def test_the_formula_is_within_five_percent_of_the_count(name: str) -> None:
    """Of every recipe, ten more bases and each method, the peak is that of the counted step."""
    assert max(abs(one) for one in off(name)) < 0.05


def test_most_of_the_counted_steps_are_met_within_two_percent() -> None:
    """Nine of ten are, and half within one percent: what is kept is known, not fitted."""
    errors = sorted(abs(one) for name in COUNTED for one in off(name))

    assert statistics.median(errors) < 0.01
    assert errors[int(0.9 * len(errors))] < 0.02
