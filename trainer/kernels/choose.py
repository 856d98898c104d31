"""Decides which kernels a run trains with: those that suit base and card, and prove equal there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from trainer.config import TrainTable
from trainer.device.out_of_memory import give_memory_back
from trainer.kernels.attention import UnmaskedAttention
from trainer.kernels.candidates import candidates as fused
from trainer.kernels.kernel_set import NO_KERNELS, Card, HeadLoss, Kernel, KernelSet
from trainer.kernels.on_model import find_model_difference
from trainer.kernels.varlen import PackedAttention


@runtime_checkable
class HeadLossKernel(Protocol):
    """A kernel that computes head and loss in one."""

    @property
    def head_loss(self) -> HeadLoss:
        """The function; see `HeadLoss`."""


def candidates(train: TrainTable) -> list[Kernel]:
    """Return every kernel there is, in the order in which they are asked.

    Of several of one name the first that can be used is.
    """
    attention: list[Kernel] = [PackedAttention(longest=train.max_length), UnmaskedAttention()]
    return [*attention, *fused()]


def choose_kernels(
    model: Any,
    card: Card,
    train: TrainTable,
    on_message: Callable[[str], None],
    *,
    kernels: Sequence[Kernel] | None = None,
) -> KernelSet:
    """Return what `model` is trained with on `card`: on a processor, plain operations alone.

    Each of `kernels` (without them, all there are) is left out, with a message, if it does not suit
    the base or the card, differs from the plain way there, or finds no place in the model. Nothing
    is drawn from torch's generators, and memory that a proof took is given back.
    """
    if kernels is None:
        if card.device.type != "cuda":
            return NO_KERNELS
        kernels = candidates(train)
    chosen: list[Kernel] = []
    for kernel in kernels:
        is_taken = any(kernel.name == other.name for other in chosen)
        if not is_taken and _is_usable(kernel, model, card, on_message):
            chosen.append(kernel)
    give_memory_back()
    if not chosen:
        return NO_KERNELS
    names = ", ".join(f"{kernel.name} ({kernel.version})" for kernel in chosen)
    on_message(f"kernels, each compared with plain operations on this card: {names}")
    return KernelSet(
        kernels=tuple(chosen),
        masked=all(getattr(kernel, "masked", True) for kernel in chosen),
        packed=any(getattr(kernel, "packed", False) for kernel in chosen),
        head_loss=_head_loss(chosen),
    )


def _is_usable(kernel: Kernel, model: Any, card: Card, on_message: Callable[[str], None]) -> bool:
    """Tell whether a kernel is used, and report why one is not."""
    try:
        reason = kernel.unsuitable(model, card) or _failed_proof(kernel, model, card)
    except Exception as error:
        if isinstance(error, torch.AcceleratorError):  # the process cannot use the card any more
            raise
        text = " ".join(str(error).split())
        reason = f"it cannot be run here ({type(error).__name__}: {text[:200]})"
    if reason is not None:
        on_message(f"kernel `{kernel.name}` ({kernel.version}) is not used: {reason}")
    return reason is None


def _failed_proof(kernel: Kernel, model: Any, card: Card) -> str | None:
    """Return what differs from the plain way, on small tensors or on the model; None if nothing."""
    difference = kernel.prove(card)
    if difference is not None:
        return difference
    if kernel.prepare(model) == 0:
        return "the model has no place for it"
    return find_model_difference(model, kernel, card)


def _head_loss(kernels: Sequence[Kernel]) -> HeadLoss | None:
    for kernel in kernels:
        if isinstance(kernel, HeadLossKernel):
            return kernel.head_loss
    return None
