"""What was switched on so that a step fits into memory, beyond what the config asks for.

It is part of the state: a resumed run computes as the interrupted one did. The micro-batch, which
is the first thing that shrinks, is one of the counters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trainer.method_table import OptimizerKind


@dataclass(frozen=True, kw_only=True)
class MemorySavings:
    """Each keeps what a step means; the optimizer's moments alone are rounded otherwise."""

    checkpointing: bool = False
    """Activations are computed again in the backward pass (gradient checkpointing)."""
    offloading: bool = False
    """Activations wait in the host's memory for the backward pass."""
    optimizer: OptimizerKind | None = None
    """Whose moments are used instead of the configured one's."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which `read_savings` makes the same."""
        return asdict(self)


NO_SAVINGS = MemorySavings()


def read_savings(value: object) -> MemorySavings:
    """Return the savings that `to_json` wrote; None stands for none.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return NO_SAVINGS
    if not isinstance(value, dict) or set(value) != set(NO_SAVINGS.to_json()):
        raise ValueError("its memory savings are foreign")
    switches = [value[name] for name in ("checkpointing", "offloading")]
    if not all(isinstance(one, bool) for one in switches):
        raise ValueError("its memory savings are foreign")
    kind = value["optimizer"]
    return MemorySavings(
        checkpointing=switches[0],
        offloading=switches[1],
        optimizer=None if kind is None else OptimizerKind(kind),
    )
