"""A step whose numbers are on their way to the host, and the record that is made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from trainer.device.device_queue import Event, HostCopy, copy_to_host, record_event
from trainer.saving.state import TrainingState, bit_sums, finite_or_none, hash_sums
from trainer.training.train_context import TrainContext


@dataclass(frozen=True, kw_only=True)
class LaunchedStep:
    """One optimizer step that the device has done, or is doing."""

    step: int
    """Its number; the first is 1."""
    tokens: int
    targets: int
    began: Event
    ended: Event
    measured: dict[str, Any]
    """What `TrainContext.measure_gpu` returned behind it."""
    copy: HostCopy
    order: list[int]
    """Of the parameters whose sums are in the copy."""

    @property
    def seconds(self) -> float:
        """The device's time for it; waits until it is done."""
        return self.ended.seconds_since(self.began)

    def read(self, context: TrainContext) -> dict[str, Any]:
        """Return the record of the step; waits until the device has done it."""
        self.copy.synchronize()
        values = self.copy.tensors
        loss, grad_norm = values["loss"].item(), values["grad_norm"].item()
        position = context.schedule.locate(self.step - 1)
        return {
            "step": self.step,
            "epoch": position.epoch,
            "loss": finite_or_none(loss),
            "lr": context.schedule.lr(self.step - 1),
            "grad_norm": finite_or_none(grad_norm),
            "tokens": self.tokens,
            "targets": self.targets,
            "skipped": not math.isfinite(grad_norm),
            "params": hash_sums(values["sums"], self.order),
            "seconds": round(self.seconds, 4),
            **self.measured,
        }


def note_launched(
    context: TrainContext,
    state: TrainingState,
    *,
    began: Event,
    loss_sum: torch.Tensor,
    grad_norm: torch.Tensor,
) -> LaunchedStep:
    """Send the numbers of the step that was just launched to the host, and count it as done.

    The loss is the mean over the step's target tokens; the sums are of the parameters behind it.
    """
    device = context.accelerator.device
    rows = [context.examples[row] for row in context.schedule.batch(state.counters.step)]
    targets = sum(example.targets for example in rows)
    loss = loss_sum / targets
    ended = record_event(device)
    sums, order = bit_sums(state.parameters)
    state.counters.step += 1
    return LaunchedStep(
        step=state.counters.step,
        tokens=sum(len(example.input_ids) for example in rows),
        targets=targets,
        began=began,
        ended=ended,
        measured=context.measure_gpu(),
        copy=copy_to_host({"loss": loss, "grad_norm": grad_norm, "sums": sums}, device),
        order=order,
    )
