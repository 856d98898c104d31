"""The loop, the validation and the checkpoints work for any objective, and learn from it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.rig import Rig, outcome, rig, twin_of
from support.tiny import make_run

from trainer.data.codec import Example
from trainer.kernels.kernel_set import NO_KERNELS, KernelSet
from trainer.training.objective import Batch, Objective

VALIDATED = {"steps": 4, "validate_every": 2, "batch_size": 4, "micro_batch": 2}


@dataclass
class Scaled:
    """Another objective: the loss of the one inside times a factor, with a record of its calls."""

    inner: Objective
    factor: float
    passes: list[tuple[bool, int]] = field(default_factory=list)  # learnt from, rows

    def load(self, rows: Any) -> Any:
        """Read as the one inside does."""
        return self.inner.load(rows)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Collate as the one inside does."""
        return self.inner.collate(examples)

    def loss(self, model: Any, batch: Batch, kernels: KernelSet = NO_KERNELS) -> torch.Tensor:
        """Scale the loss of the one inside."""
        self.passes.append((torch.is_grad_enabled(), len(batch["input_ids"])))
        return self.inner.loss(model, batch, kernels) * self.factor


def with_objective(made: Rig, factor: float) -> tuple[Rig, Scaled]:
    """Return the rig with its objective scaled, in the loop and in the validation."""
    scaled = Scaled(made.context.objective, factor)
    assert made.context.validation is not None
    validation = replace(made.context.validation, objective=scaled)
    made.context = replace(made.context, objective=scaled, validation=validation)
    return made, scaled


@pytest.fixture
def plain(tmp_path: Path) -> Rig:
    """A rig with validation, trained to its end."""
    rows = str(tmp_path / "plain" / "train.jsonl")
    run = make_run(tmp_path / "plain", rows=8, train=VALIDATED, data={"eval": rows})
    made = rig(run)
    made.train(until=4)
    return made


def test_every_pass_asks_the_objective_and_nothing_else(plain: Rig, tmp_path: Path) -> None:
    """An objective that hands on to another gives the same bits, and sees every pass."""
    made, scaled = with_objective(rig(twin_of(plain, tmp_path / "again")), 1.0)
    made.train(until=4)

    assert outcome(made) == outcome(plain)
    assert [rows for learnt, rows in scaled.passes if learnt] == [2, 2] * 4
    assert sum(rows for learnt, rows in scaled.passes if not learnt) == 2 * 8


def test_another_objective_is_another_training(plain: Rig, tmp_path: Path) -> None:
    """Half the loss is logged as half, in steps and validations, with half the gradient."""
    made, _ = with_objective(rig(twin_of(plain, tmp_path / "half")), 0.5)
    made.train(until=2)
    (whole, half), second = ((outcome(one)[0][0] for one in (plain, made)), outcome(made)[0][1])

    assert half["loss"] == pytest.approx(whole["loss"] / 2)
    assert half["grad_norm"] == pytest.approx(whole["grad_norm"] / 2)
    assert second["validation_loss"] < outcome(plain)[0][1]["validation_loss"]
