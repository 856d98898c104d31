"""What the training loop works with in a counted step: a device, an objective, an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from trainer.adapters import methods
from trainer.data.codec import Example
from trainer.data.examples import collate
from trainer.data.targets import collate_targets
from trainer.device.precision import Precision
from trainer.kernels.kernel_set import NO_KERNELS, KernelSet
from trainer.loss import summed_cross_entropy
from trainer.method_table import OptimizerKind
from trainer.model import DTYPES
from trainer.step_memory.request import StepRequest
from trainer.step_memory.storages import StorageTracker

PAGED_MIN = 1e5  # elements: smaller moments are not paged (bitsandbytes, `get_state_buffer`)


@dataclass
class CountingAccelerator:
    """What the loop needs of `accelerate.Accelerator`; marks where the backward pass is."""

    tracker: StorageTracker
    precision: Precision
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def autocast(self) -> Any:
        """Choose types per operation while inside."""
        if not self.precision.autocast:
            return nullcontext()
        return torch.autocast("cpu", dtype=DTYPES[self.precision.compute])

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass."""
        with self.tracker.during("backward"):
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here


@dataclass(frozen=True)
class CountedObjective:
    """Supervised fine-tuning on rows that are as long as was asked."""

    all_logits: bool

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, and where the targets are."""
        padded = collate(examples, 0)
        return padded if self.all_logits else {**padded, **collate_targets(examples)}

    def loss(
        self, model: Any, batch: dict[str, torch.Tensor], kernels: KernelSet = NO_KERNELS
    ) -> torch.Tensor:
        """Return the loss: the trainer's own, or that of transformers over all logits."""
        if not self.all_logits:
            return summed_cross_entropy(model, batch, kernels)
        found: torch.Tensor = model(**batch, use_cache=False).loss
        return found


class FiniteScaler(torch.amp.GradScaler):
    """A loss scale whose gradients are always finite."""

    def _maybe_opt_step(self, optimizer: Any, *_: Any, **__: Any) -> Any:
        return optimizer.step()


def make_scaler() -> FiniteScaler:
    """Return a loss scale that has its tensor, which it makes when it is first used."""
    scaler = FiniteScaler("cpu")
    scaler.scale(torch.zeros(()))
    return scaler


def make_optimizer(
    request: StepRequest, parameters: list[torch.nn.Parameter], tracker: StorageTracker
) -> torch.optim.Optimizer:
    """Return the trainer's optimizer, which updates as it would on the device."""
    method, cuda = request.method, request.capability is not None
    paged = method.optimizer is OptimizerKind.PAGED_ADAMW8BIT
    if paged and cuda:
        method = method.model_copy(update={"optimizer": OptimizerKind.ADAMW8BIT})
    with _disable_current_modes():  # bitsandbytes computes its tables of codes
        made: Any = methods.make_optimizer(method, request.train, parameters)
    if cuda and method.optimizer is OptimizerKind.ADAMW:
        for group in made.param_groups:
            group["fused"] = True  # as for tensors of a GPU
    if paged and cuda:
        made.get_state_buffer = partial(_paged_buffer, tracker)
    return made  # type: ignore[no-any-return]


def _paged_buffer(
    tracker: StorageTracker, parameter: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return moments; large ones lie in memory that pages to the host, outside of torch's."""
    with tracker.paused() if parameter.numel() >= PAGED_MIN else nullcontext():
        return torch.zeros_like(parameter, dtype=dtype)
