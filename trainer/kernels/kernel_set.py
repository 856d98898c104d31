"""The kernels that a run trains with, under the names that its fingerprint records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

HeadLoss = Callable[[torch.Tensor, Any, torch.Tensor], torch.Tensor]
"""Returns the summed cross-entropy (float32, nats) of hidden states [targets, hidden] through a
head module against token ids [targets], with its graph."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What decides whether a kernel can be used: the device and the arithmetic of the run."""

    device: torch.device
    capability: tuple[int, int] | None
    """CUDA's compute capability; None on a processor."""
    dtype: torch.dtype
    """Of activations."""
    exact: bool = True
    """Whether a killed and resumed run must have the bits of an undisturbed one (`train.exact`)."""


class Kernel(Protocol):
    """One faster way to compute a part of a training step."""

    @property
    def name(self) -> str:
        """What is computed, such as `rms_norm`: a key of the fingerprint."""

    @property
    def version(self) -> str:
        """How it is computed, such as `triton-1`: another arithmetic is another word."""

    def unsuitable(self, model: Any, card: Card) -> str | None:
        """Return why this base or card cannot use it, in words; None if it can."""

    def prove(self, card: Card) -> str | None:
        """Compute small cases on the device in both ways; return what differs, None if nothing.

        Values and gradients are compared with the plain way within the bound that the kernel names,
        and a repetition with the first time, bit for bit, if `card.exact`.
        """

    def prepare(self, model: Any) -> int:
        """Find the places of `model` that it computes, and return how many there are."""

    def enabled(self, batch: Mapping[str, Any]) -> Any:
        """Return a context manager: while inside, passes of the prepared model use it."""


@dataclass(frozen=True, kw_only=True)
class KernelSet:
    """What a run trains with beside plain operations; empty on a processor."""

    kernels: tuple[Kernel, ...] = ()
    masked: bool = True
    """Whether the model gets an attention mask; without one, rows are right-padded and causal."""
    packed: bool = False
    """Whether the rows of a batch lie one behind the other, without padding."""
    head_loss: HeadLoss | None = None
    """Computes head and loss in one; None for the plain way."""

    @property
    def facts(self) -> dict[str, str]:
        """Name what computes, for the fingerprint: `{"rms_norm": "triton-1"}`."""
        return {kernel.name: kernel.version for kernel in self.kernels}

    @contextmanager
    def enabled(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Compute with all of them while inside: both a forward pass and its backward pass."""
        with ExitStack() as stack:
            for kernel in self.kernels:
                stack.enter_context(kernel.enabled(batch))
            yield


NO_KERNELS = KernelSet()
