"""The order in which memory is saved when a step does not fit, the dearest in time last.

Nothing here changes what a step means: the rows of a batch, their tokens, the rank and the base
stay as the config has them. Only the last one changes the optimizer's arithmetic, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.method_table import OptimizerKind
from trainer.saving.memory_savings import MemorySavings

PAGED = OptimizerKind.PAGED_ADAMW8BIT


@dataclass(frozen=True, kw_only=True)
class MemorySetup:
    """How a step is computed, as far as its memory depends on it."""

    micro_batch: int
    savings: MemorySavings
    unpacked: bool = False
    """Whether the values of the base's 4-bit layers are kept unpacked; changes no bit."""


@dataclass(frozen=True, kw_only=True)
class Available:
    """What can be switched on beside a smaller micro-batch, here and now."""

    checkpointing: bool
    """The architecture can, and the config has not switched it on already."""
    offloading: bool
    """There is a card whose activations can wait on the host."""
    optimizers: tuple[OptimizerKind, ...]
    """Whose moments are smaller, in order; none once there are moments."""


def next_saving(setup: MemorySetup, available: Available) -> tuple[MemorySetup, str] | None:
    """Return the setup to try next with what it changes, in words; None if nothing is left."""
    micro_batch, savings = setup.micro_batch, setup.savings
    if setup.unpacked:
        return (
            replace(setup, unpacked=False),
            "the base is kept in 4 bits only: its values are unpacked in every pass",
        )
    if micro_batch > 1:
        half = -(-micro_batch // 2)
        return replace(setup, micro_batch=half), f"micro-batch {micro_batch} -> {half}"
    if available.checkpointing and not savings.checkpointing:
        return (
            replace(setup, savings=replace(savings, checkpointing=True)),
            "gradient checkpointing on: activations are computed again in the backward pass",
        )
    if available.offloading and not savings.offloading:
        return (
            replace(setup, savings=replace(savings, offloading=True)),
            "activations wait in the host's memory for the backward pass",
        )
    at = available.optimizers.index(savings.optimizer) + 1 if savings.optimizer else 0
    if at < len(available.optimizers):
        kind = available.optimizers[at]
        what = "may wait in the host's memory" if kind is PAGED else "take 8 bits, and are rounded"
        return (
            replace(setup, savings=replace(savings, optimizer=kind)),
            f"optimizer {kind}: its moments {what}",
        )
    return None


def smaller_optimizers(kind: OptimizerKind, *, on_card: bool) -> tuple[OptimizerKind, ...]:
    """Return the optimizers with smaller moments than `kind`, in the order to try them."""
    order = [OptimizerKind.ADAMW, OptimizerKind.ADAMW8BIT, *([PAGED] if on_card else [])]
    return tuple(order[order.index(kind) + 1 :]) if kind in order else ()
