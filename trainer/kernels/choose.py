"""Decides which kernels a run trains with: those that suit base and card, and prove equal there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch

from trainer.config import TrainTable
from trainer.device.out_of_memory import give_memory_back
from trainer.kernels.attention import UnmaskedAttention
from trainer.kernels.candidates import make_fused_kernels
from trainer.kernels.kernel_set import NO_KERNELS, Card, HeadLoss, Kernel, KernelSet
from trainer.kernels.on_model import find_model_difference
from trainer.kernels.places import base_name
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
    return [*attention, *make_fused_kernels()]


def choose_kernels(
    model: Any,
    card: Card,
    train: TrainTable,
    on_message: Callable[[str], None],
    *,
    kernels: Sequence[Kernel] | None = None,
) -> KernelSet:
    """Return what `model` is trained with on `card`: on a processor, plain operations alone.

    Each of `kernels` (without them, all there are) is left out if it does not suit the base or the
    card, differs from the plain way there, or finds no place in the model; one message names these
    with their reasons. All are left out if they differ together. Nothing is drawn from torch's
    generators, and memory that a proof took is given back.
    """
    if kernels is None:
        if card.device.type != "cuda":
            return NO_KERNELS
        kernels = candidates(train)
    chosen: list[Kernel] = []
    reasons: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        if any(kernel.name == other.name for other in chosen):
            continue
        reason = _first_problem(
            partial(kernel.unsuitable, model, card), partial(_failed_proof, kernel, model, card)
        )
        if reason is None:
            chosen.append(kernel)
        else:
            reasons.setdefault(reason, []).append(kernel)
    if reasons:
        parts = (f"{_names(several)}: {reason}" for reason, several in reasons.items())
        on_message(f"kernels not used: {'; '.join(parts)}")
    found = _together(chosen)
    problem = None
    if len(chosen) > 1:
        problem = _first_problem(partial(find_model_difference, model, found, card))
    give_memory_back()
    if problem is not None:
        on_message(f"no kernel is used, since together {problem}")
        return NO_KERNELS
    if not chosen:
        return NO_KERNELS
    on_message(f"kernels, each compared with plain operations on this card: {_names(chosen)}")
    return found


def _names(kernels: Sequence[Kernel]) -> str:
    return ", ".join(f"{kernel.name} ({kernel.version})" for kernel in kernels)


def _first_problem(*examinations: Callable[[], str | None]) -> str | None:
    """Return what the first that finds something says, or why one of them cannot be made here."""
    try:
        return next((found for one in examinations if (found := one()) is not None), None)
    except Exception as error:  # whatever a compiler raises: plain operations compute instead
        if isinstance(error, torch.AcceleratorError):  # the process cannot use the card any more
            raise
        text = " ".join(str(error).split())
        return f"it cannot be run here ({type(error).__name__}: {text[:200]})"


def _failed_proof(kernel: Kernel, model: Any, card: Card) -> str | None:
    """Return what differs from the plain way, on small tensors or on the model; None if nothing."""
    difference = kernel.prove(card)
    if difference is not None:
        return difference
    if kernel.prepare(model) == 0:
        return f"{base_name(model)} has no part that it computes"
    return find_model_difference(model, _together([kernel]), card)


def _together(kernels: list[Kernel]) -> KernelSet:
    """Return the set of these kernels, with what they mean for batch and loss."""
    return KernelSet(
        kernels=tuple(kernels),
        masked=all(getattr(kernel, "masked", True) for kernel in kernels),
        packed=any(getattr(kernel, "packed", False) for kernel in kernels),
        head_loss=_head_loss(kernels),
    )


def _head_loss(kernels: Sequence[Kernel]) -> HeadLoss | None:
    for kernel in kernels:
        if isinstance(kernel, HeadLossKernel):
            return kernel.head_loss
    return None
