"""The tools on the bench of the training loop; none of them changes which numbers come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from trainer.adapters.methods import Method
from trainer.data.codec import Example
from trainer.device.determinism import Rigour
from trainer.eviction import Flag
from trainer.saving.state import TrainingState
from trainer.schedule import Plan


class Layer(Protocol):
    """What the loop needs of `accelerate.Accelerator`, its device and precision layer."""

    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Choose types per operation while inside."""

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass."""


class Examiner(Protocol):
    """What the loop needs of validation, which itself works on the bench."""

    @property
    def examples(self) -> Sequence[Example]:
        """The held-out rows."""

    @property
    def keep_best(self) -> bool:
        """Whether the run ends with the adapter that was best."""

    def due(self, step: int) -> bool:
        """Tell whether the state after `step` steps is validated."""

    def owed(self, state: TrainingState) -> bool:
        """Tell whether a notice came in the middle of the validation of this state."""

    def over(self, state: TrainingState) -> bool:
        """Tell whether the training has not become better for too long."""

    def sit(self, bench: Bench, state: TrainingState) -> dict[str, Any]:
        """Validate the present state, and return what the log says of it."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The tools of the loop; none of them changes which numbers come out."""

    model: Any
    method: Method
    layer: Layer
    plan: Plan
    examples: Sequence[Example]
    pad_id: int
    seed: int
    max_grad_norm: float
    flag: Flag
    on_message: Callable[[str], None]
    price_usd_per_h: float = 0.0
    exam: Examiner | None = None
    rigour: Rigour = field(default_factory=Rigour)
